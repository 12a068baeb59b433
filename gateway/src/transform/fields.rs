//! Header fields that a route removes, sets and adds.

use http::HeaderMap;

use crate::config::HeaderChanges;

/// Changes the header fields of a request or an answer.
pub fn apply(changes: &HeaderChanges, headers: &mut HeaderMap) {
    for name in &changes.remove {
        headers.remove(name);
    }
    for (name, value) in &changes.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &changes.add {
        headers.append(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn what_is_removed_can_be_set_again_and_what_is_set_added_to() {
        let field = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let changes = HeaderChanges {
            remove: vec![HeaderName::from_static("a"), HeaderName::from_static("b")],
            set: vec![field("b", "2"), field("c", "3")],
            add: vec![field("c", "4"), field("d", "5")],
        };
        let mut headers: HeaderMap =
            [field("a", "0"), field("b", "0"), field("c", "0"), field("d", "0")]
                .into_iter()
                .collect();
        apply(&changes, &mut headers);
        let all =
            |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            [all("a"), all("b"), all("c"), all("d")],
            [vec![], vec!["2"], vec!["3", "4"], vec!["0", "5"]]
        );
    }
}
