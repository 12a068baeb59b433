//! The lists of `nft` and `ipset` as the files that those programs read. Where a list has hosts alone they get the set
//! that is made for hosts, which is their fastest.

use harness::programs::Prefix;

use super::prefixes::{is_host, text};

/// So many entries may a set have.
const ENTRIES_MAX: u32 = 1 << 21;

/// Sets `v4` and `v6` of a table with these prefixes. `rules`: what else is in the table.
pub(super) fn nft(table: &str, prefixes: &[Prefix], rules: &str) -> String {
    let mut script = format!("table {table} {{\n");
    for (name, six, members) in families(prefixes) {
        let family = if six { "ipv6_addr" } else { "ipv4_addr" };
        let kind = match members.iter().all(is_host) {
            true => format!("size {ENTRIES_MAX}"),
            false => "flags interval; auto-merge".to_owned(),
        };
        script += &format!("set {name} {{ type {family}; {kind}; }}\n");
    }
    script += rules;
    script += "}\n";
    script + &nft_elements(table, prefixes)
}

/// The same sets with these prefixes instead, in one transaction.
pub(super) fn nft_replace(table: &str, prefixes: &[Prefix]) -> String {
    let sets = families(prefixes);
    let flush = sets.iter().map(|(name, ..)| format!("flush set {table} {name}\n"));
    flush.collect::<String>() + &nft_elements(table, prefixes)
}

/// Sets `v4` and `v6` with these prefixes.
pub(super) fn ipset(prefixes: &[Prefix]) -> String {
    ipset_named("", prefixes)
}

/// The same sets with these prefixes instead: filled beside them, then exchanged.
pub(super) fn ipset_replace(prefixes: &[Prefix]) -> String {
    let mut script = ipset_named("new-", prefixes);
    for (name, ..) in families(prefixes) {
        script += &format!("swap new-{name} {name}\ndestroy new-{name}\n");
    }
    script
}

fn nft_elements(table: &str, prefixes: &[Prefix]) -> String {
    let add = |(name, _, members): &(&str, bool, Vec<Prefix>)| {
        let members: Vec<String> = members.iter().map(text).collect();
        format!("add element {table} {name} {{ {} }}\n", members.join(",\n"))
    };
    families(prefixes).iter().map(add).collect()
}

fn ipset_named(before: &str, prefixes: &[Prefix]) -> String {
    let mut script = String::new();
    for (name, six, members) in families(prefixes) {
        let kind = if members.iter().all(is_host) { "hash:ip" } else { "hash:net" };
        let family = if six { "inet6" } else { "inet" };
        // Sized for its members, so that it need not grow.
        let buckets = (members.len() as u64 / 2).next_power_of_two();
        script += &format!(
            "create {before}{name} {kind} family {family} hashsize {buckets} maxelem {ENTRIES_MAX}\n"
        );
        for member in &members {
            script += &format!("add {before}{name} {}\n", text(member));
        }
    }
    script
}

/// The families that have members, with the names of their sets, and whether it is IPv6.
fn families(prefixes: &[Prefix]) -> Vec<(&'static str, bool, Vec<Prefix>)> {
    let (v4, v6): (Vec<_>, Vec<_>) = prefixes.iter().partition(|(address, _)| address.is_ipv4());
    let families = [("v4", false, v4), ("v6", true, v6)];
    families.into_iter().filter(|(.., members)| !members.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_get_sets_of_hosts_and_others_sets_of_networks() {
        let hosts: Vec<Prefix> = vec![([192, 0, 2, 1].into(), 32)];
        let both = [hosts.clone(), vec![("2001:db8::".parse().unwrap(), 48)]].concat();
        assert!(nft("inet bench", &hosts, "").contains("set v4 { type ipv4_addr; size 2097152; }"));
        assert!(
            nft("inet bench", &both, "").contains("type ipv6_addr; flags interval; auto-merge")
        );
        assert!(nft_replace("inet bench", &both).starts_with(
            "flush set inet bench v4\nflush set inet bench v6\nadd element inet bench v4 { 192.0.2.1 }"
        ));
        let script = ipset_replace(&both);
        assert!(script.contains("create new-v6 hash:net family inet6"), "{script}");
        let last = "swap new-v4 v4\ndestroy new-v4\nswap new-v6 v6\ndestroy new-v6\n";
        assert!(script.ends_with(&format!("add new-v6 2001:db8::/48\n{last}")), "{script}");
    }
}
