//! No text makes the configuration panic, and every mistake has a place inside of it.
#![no_main]

use gateway::config::{PathPattern, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| match parse("fuzz.yaml", text) {
    // What was read can be shown, and is read again as the same.
    Ok(config) => {
        for route in &config.routes {
            reread(&route.path);
        }
    }
    Err(errors) => {
        let lines = text.lines().count().max(1);
        assert!(errors.iter().next().is_some());
        for error in errors.iter() {
            let place = error.place.as_ref().expect("a text always has a place");
            assert!((1..=lines).contains(&place.line), "{error}");
        }
        assert!(errors.to_string().ends_with("nothing of the file is applied"));
    }
});

fn reread(path: &PathPattern) {
    let text = format!(
        "listen: [{{address: 127.0.0.1:80}}]\nupstreams: {{u: {{endpoints: [echo]}}}}\n\
         routes: [{{match: {{path: '{}'}}, upstream: u, encoded_slash: keep, path_parameters: keep}}]",
        path.to_string().replace('\'', "''")
    );
    let config = parse("again.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.routes[0].path, *path);
}
