//! Paths that only scanners ask for, as they are looked up: for whatever was not there, and for nothing else.

use std::collections::HashSet;

/// The paths of `feedback.scanner_paths`.
#[derive(Debug, Default)]
pub struct ScannerPaths {
    exact: HashSet<Box<str>>,
    /// Sorted, and none of them begins with another.
    prefixes: Vec<Box<str>>,
}

impl ScannerPaths {
    /// Of paths in lower case. One that ends in `*` stands for all that begin so.
    pub fn new(paths: &[Box<str>]) -> Self {
        let (prefixes, exact): (Vec<&str>, Vec<&str>) =
            paths.iter().map(|path| &**path).partition(|path| path.ends_with('*'));
        let mut prefixes: Vec<&str> =
            prefixes.into_iter().filter_map(|path| path.strip_suffix('*')).collect();
        prefixes.sort_unstable();
        let mut least: Vec<Box<str>> = Vec::new();
        for prefix in prefixes {
            if !least.last().is_some_and(|before| prefix.starts_with(&**before)) {
                least.push(prefix.into());
            }
        }
        Self { exact: exact.into_iter().map(Box::from).collect(), prefixes: least }
    }

    /// Whether `path`, in its normal form and in whatever case, is one of them.
    pub fn has(&self, path: &str) -> bool {
        let path = path.to_ascii_lowercase();
        let after = self.prefixes.partition_point(|prefix| **prefix <= *path);
        let before = after.checked_sub(1).and_then(|at| self.prefixes.get(at));
        before.is_some_and(|prefix| path.starts_with(&**prefix)) || self.exact.contains(&*path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_found_whole_or_by_how_it_begins() {
        let paths = ["/.env", "/wp-*", "/wp-admin/*", "/cgi-bin/*"].map(Box::from);
        let paths = ScannerPaths::new(&paths);
        for path in ["/.env", "/.ENV", "/wp-login.php", "/wp-admin/x", "/cgi-bin/"] {
            assert!(paths.has(path), "{path}");
        }
        for path in ["/", "", "/.env.example", "/a/.env", "/wp", "/cgi-bin", "/z"] {
            assert!(!paths.has(path), "{path}");
        }
        assert!(!ScannerPaths::default().has("/"));
        assert!(ScannerPaths::new(&["*".into()]).has("/x"));
    }

    proptest! {
        #[test]
        fn it_is_found_as_if_each_were_tried(
            paths in proptest::collection::vec("[ab/]{0,4}[*]?", 0..8),
            asked in "[abAB/]{0,6}",
        ) {
            let boxed: Vec<Box<str>> = paths.iter().map(|path| path.as_str().into()).collect();
            let lower = asked.to_ascii_lowercase();
            let tried = paths.iter().any(|path| match path.strip_suffix('*') {
                Some(prefix) => lower.starts_with(prefix),
                None => lower == *path,
            });
            prop_assert_eq!(ScannerPaths::new(&boxed).has(&asked), tried);
        }
    }
}
