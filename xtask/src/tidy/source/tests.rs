//! Each rule can fail, and does not where it should not.

use super::check;

/// Checks a body behind a proper head, and returns line and text of each finding.
fn findings(file: &str, body: &str) -> Vec<(usize, String)> {
    let text = format!("//! Something.\n{body}");
    check(file, &text).into_iter().map(|finding| (finding.line, finding.text)).collect()
}

fn only(file: &str, body: &str) -> (usize, String) {
    let found = findings(file, body);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn imports_of_lower_ranks_pass_in_any_form() {
    let body = "use crate::base::id::Id;\nuse crate::{base, config::Config};\nuse super::own;\n\
                fn f() { crate::rules::go(); super::super::base::go(); }\n";
    assert_eq!(findings("gateway/src/kernel/guard.rs", body), []);
    assert_eq!(findings("gateway/src/main.rs", "use crate::cli::run;"), []);
    assert_eq!(findings("xtask/src/main.rs", "use crate::anything::at_all;"), []);
}

#[test]
fn imports_of_the_same_or_a_higher_rank_are_found_in_any_form() {
    let file = "gateway/src/kernel/guard.rs";
    for body in [
        "use crate::http::Body;\nuse crate::route::Routed;",
        "use crate::{base, route};",
        "use crate::control as boss;",
        "use crate::{admin::*, base};",
        "fn f() { crate::request::go(); }",
        "fn f(_: &crate::listen::Socket) {}",
        "use super::super::feedback;",
        "mod inner { use super::super::super::feedback; }",
        "use crate::nowhere::Thing;",
    ] {
        assert_eq!(findings(file, body).len(), 1, "{body}");
    }
    let (line, text) = only("gateway/src/base/id.rs", "use crate::rules::Rules;");
    assert_eq!((line, text.as_str()), (2, "base (rank 0) must not know rules (rank 2)"));
}

#[test]
fn a_module_without_a_rank_is_found() {
    let (_, text) = only("gateway/src/helpers.rs", "use crate::base::id::Id;");
    assert!(text.contains("helpers has no rank"), "{text}");
}

#[test]
fn long_functions_are_found_by_their_code() {
    let function = |code: usize| {
        format!("fn f() {{\n{}{}}}\n", "    // why\n\n".repeat(40), "    g();\n".repeat(code))
    };
    assert_eq!(findings("a/src/b.rs", &function(68)), []);
    assert_eq!(only("a/src/b.rs", &function(69)).1, "f has 71 lines of code, at most 70");
}

#[test]
fn long_files_are_found_without_their_tests() {
    let items = |count: usize| "use a::b;\n".repeat(count);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", items(50));
    assert_eq!(findings("a/src/b.rs", &format!("{}{tests}", items(499))), []);
    assert_eq!(only("a/src/b.rs", &items(500)).0, 501);
    assert_eq!(findings("a/src/b/tests.rs", &items(600)), []);
}

#[test]
fn many_parameters_and_types_are_found() {
    assert_eq!(findings("a.rs", "fn f(a: u8, b: u8, c: u8, d: u8, e: u8) {}"), []);
    assert!(only("a.rs", "fn f(a: u8, b: u8, c: u8, d: u8, e: u8, g: u8) {}").1.contains("6"));
    assert!(only("a.rs", "impl<A, B, C, D> T<A, B, C, D> {}").1.contains("4 types"));
}

#[test]
fn long_lines_are_found_and_prose_has_a_little_more() {
    assert_eq!(findings("a.rs", &format!("// {}\nuse a::b;", "x".repeat(110))), []);
    assert_eq!(findings("a.rs", &format!("// {}\nuse a::b;", "x".repeat(118))).len(), 1);
    assert_eq!(findings("a.rs", &format!("const A: &str = \"{}\";", "x".repeat(95))), []);
    assert_eq!(only("a.rs", &format!("use a::{};", "x".repeat(95))).0, 2);
}

#[test]
fn unwrap_is_for_tests() {
    assert_eq!(only("a.rs", "fn f() {\n    g().unwrap();\n}").0, 3);
    assert_eq!(findings("a.rs", "#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap(); }\n}"), []);
    assert_eq!(findings("a.rs", "#[test]\nfn f() { g().unwrap(); }"), []);
    assert_eq!(findings("a/tests/b.rs", "fn f() { g().unwrap(); }"), []);
    assert_eq!(findings("a.rs", "#[cfg(not(test))]\nfn f() { g().unwrap(); }").len(), 1);
}

#[test]
fn unsafe_is_for_named_files() {
    for body in [
        "fn f() { unsafe { g() } }",
        "unsafe fn f() {}",
        "unsafe impl Send for A {}",
        "unsafe trait A {}",
        "unsafe extern \"C\" { fn f(); }",
    ] {
        assert_eq!(findings("gateway/src/base/id.rs", body).len(), 1, "{body}");
        assert_eq!(findings("gateway-common/src/layout.rs", body), [], "{body}");
    }
}

#[test]
fn empty_modules_missing_heads_and_broken_syntax_are_found() {
    assert_eq!(only("a.rs", "").1, "an empty module");
    assert_eq!(only("a.rs", "mod b {}").1, "module b is empty");
    assert_eq!(check("a.rs", "use a::b;\n").len(), 1);
    assert_eq!(findings("a.rs", "fn f( {").len(), 1);
}
