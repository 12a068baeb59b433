//! What the configuration's TLS sections name, as it was read: once for all who use it. Where a new version of a file
//! is of no use the last good one stays, and a note says why.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::authorities::Authorities;
use super::pair::{Pair, open, problem};
use crate::base::stamp::Stamp;
use crate::base::time::UtcMillis;
use crate::config::{AuthorityFiles, CertificateFiles, Config, Diagnostic};

/// A certificate that ends within this time is spoken of.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Everything that a configuration names.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pairs: Table<CertificateFiles>,
    authorities: Table<AuthorityFiles>,
}

impl Store {
    /// Reads what `config` names as the user of this process, who is called `user`. What `self` has stays if its files
    /// have not changed, or are of no use by now. Answers also what could not be had at all.
    pub fn read(&self, config: &Config, user: &str, now: UtcMillis) -> (Self, Vec<Diagnostic>) {
        let mut errors = Vec::new();
        let store = Self {
            pairs: self.pairs.read(pairs(config), (user, now), &mut errors),
            authorities: self.authorities.read(authorities(config), (user, now), &mut errors),
        };
        (store, errors)
    }

    /// What was read of a pair of files.
    pub fn pair(&self, files: &CertificateFiles) -> Option<&Arc<Pair>> {
        self.pairs.0.get(files).map(|entry| &entry.value)
    }

    /// The authorities that were read.
    pub fn authorities(&self, files: &AuthorityFiles) -> Option<&Arc<Authorities>> {
        self.authorities.0.get(files).map(|entry| &entry.value)
    }

    /// Every certificate with its file.
    pub fn certificates(&self) -> impl Iterator<Item = (&CertificateFiles, &Pair)> {
        self.pairs.0.iter().map(|(files, entry)| (files, &*entry.value))
    }

    /// Certificates that `before` has not, and that are not valid any more.
    pub fn expired_since(&self, before: &Self, now: UtcMillis) -> Vec<Diagnostic> {
        let new = self.certificates().filter(|(files, _)| before.pair(files).is_none());
        new.filter_map(|(files, pair)| files.expired(pair, now)).map(|problem| *problem).collect()
    }

    /// Notes which files the user of this process, who is called `user`, may not read: root has read them.
    pub fn look_again(&mut self, user: &str) {
        self.pairs.look_again(user);
        self.authorities.look_again(user);
    }

    /// What is wrong, or soon will be, in the order of the files' names.
    pub fn notes(&self, now: UtcMillis) -> Vec<String> {
        let mut notes: Vec<String> = self.pairs.notes().chain(self.authorities.notes()).collect();
        for (files, pair) in self.certificates() {
            let (cert, end) = (files.cert.display(), pair.not_after);
            if end <= now {
                notes.push(format!("{cert}: expired on {}: renew it", end.display()));
            } else if end <= now.after(SOON) {
                notes.push(format!("{cert}: expires on {}: renew it", end.display()));
            }
        }
        notes.sort();
        notes
    }

    /// Every file, with its stamp when it was read.
    fn stamps(&self) -> impl Iterator<Item = (&Path, Stamp)> {
        self.pairs.stamps().chain(self.authorities.stamps())
    }
}

/// The pairs that a configuration names, some of them more than once.
fn pairs(config: &Config) -> impl Iterator<Item = &CertificateFiles> {
    let listeners = config.listen.iter().filter_map(|listener| listener.tls.as_ref());
    let upstreams = config.upstreams.iter().filter_map(|upstream| upstream.tls.as_ref());
    let shown = upstreams.filter_map(|tls| tls.client_certificate.as_ref());
    listeners.flat_map(|tls| &tls.certificates).chain(shown)
}

fn authorities(config: &Config) -> impl Iterator<Item = &AuthorityFiles> {
    let tls = config.listen.iter().filter_map(|listener| listener.tls.as_ref());
    let clients = tls.filter_map(|tls| Some(&tls.client_certificates.as_ref()?.authorities));
    let upstreams = config.upstreams.iter().filter_map(|upstream| upstream.tls.as_ref());
    clients.chain(upstreams.filter_map(|tls| tls.ca.as_ref()))
}

/// Files that are read together, and are of use together or not at all.
trait Source: Clone + Eq + Hash {
    type Value;

    fn paths(&self) -> impl Iterator<Item = &Path>;

    fn read(&self, user: &str) -> Result<Self::Value, Box<Diagnostic>>;

    /// Why a new version does not take the place of one that is in force.
    fn expired(&self, value: &Self::Value, now: UtcMillis) -> Option<Box<Diagnostic>>;
}

impl Source for CertificateFiles {
    type Value = Pair;

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&*self.cert, &*self.key].into_iter()
    }

    fn read(&self, user: &str) -> Result<Pair, Box<Diagnostic>> {
        Pair::read(self, user)
    }

    fn expired(&self, pair: &Pair, now: UtcMillis) -> Option<Box<Diagnostic>> {
        (pair.not_after <= now).then(|| {
            let message = format!("this certificate expired on {}", pair.not_after.display());
            problem(&self.cert, message, "renew it")
        })
    }
}

impl Source for AuthorityFiles {
    type Value = Authorities;

    fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&*self.ca).chain(self.crl.as_deref())
    }

    fn read(&self, user: &str) -> Result<Authorities, Box<Diagnostic>> {
        Authorities::read(self, user)
    }

    fn expired(&self, _: &Authorities, _: UtcMillis) -> Option<Box<Diagnostic>> {
        None
    }
}

#[derive(Debug)]
struct Table<S: Source>(HashMap<S, Entry<S::Value>>);

#[derive(Debug)]
struct Entry<V> {
    value: Arc<V>,
    /// Of the files before `value` was read from them, or they were found to be of no use.
    stamps: Vec<Stamp>,
    /// Why a newer version is not in force, or will not be.
    note: Option<String>,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        let Self { value, stamps, note } = self;
        Self { value: Arc::clone(value), stamps: stamps.clone(), note: note.clone() }
    }
}

impl<S: Source> Clone for Table<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Source> Default for Table<S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<S: Source> Table<S> {
    fn read<'a>(
        &self,
        sources: impl Iterator<Item = &'a S>,
        (user, now): (&str, UtcMillis),
        errors: &mut Vec<Diagnostic>,
    ) -> Self
    where
        S: 'a,
    {
        let mut table = HashMap::new();
        for source in sources {
            if table.contains_key(source) {
                continue;
            }
            match entry(source, self.0.get(source), user, now) {
                Ok(entry) => drop(table.insert(source.clone(), entry)),
                Err(error) => errors.push(*error),
            }
        }
        Self(table)
    }

    fn look_again(&mut self, user: &str) {
        for (source, entry) in self.0.iter_mut().filter(|(_, entry)| entry.note.is_none()) {
            if let Some(problem) = source.paths().find_map(|path| open(path, user).err()) {
                entry.note = Some(format!("{}; a new version will not be seen", text(&problem)));
            }
        }
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        self.0.values().filter_map(|entry| entry.note.clone())
    }

    fn stamps(&self) -> impl Iterator<Item = (&Path, Stamp)> {
        self.0.iter().flat_map(|(source, entry)| source.paths().zip(entry.stamps.iter().copied()))
    }
}

fn entry<S: Source>(
    source: &S,
    known: Option<&Entry<S::Value>>,
    user: &str,
    now: UtcMillis,
) -> Result<Entry<S::Value>, Box<Diagnostic>> {
    let stamps: Vec<Stamp> = source.paths().map(Stamp::at).collect();
    if let Some(known) = known.filter(|known| known.stamps == stamps) {
        return Ok(known.clone());
    }
    let read = source.read(user).and_then(|value| match source.expired(&value, now) {
        Some(expired) if known.is_some() => Err(expired),
        _ => Ok(value),
    });
    match (read, known) {
        (Ok(value), _) => Ok(Entry { value: Arc::new(value), stamps, note: None }),
        (Err(problem), Some(known)) => {
            let note = Some(format!("{}; the one before stays in force", text(&problem)));
            Ok(Entry { value: Arc::clone(&known.value), stamps, note })
        }
        (Err(error), None) => Err(error),
    }
}

fn text(problem: &Diagnostic) -> String {
    let help = problem.help.as_deref().unwrap_or_default();
    format!("{}: {}: {help}", problem.file, problem.message)
}

/// What there was at the last looks.
#[derive(Debug)]
pub struct Watch {
    files: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    path: Box<Path>,
    seen: Stamp,
    read: Stamp,
}

impl Watch {
    /// Looks after what a store has read.
    pub fn new(store: &Store) -> Self {
        let watched =
            |(path, stamp): (&Path, Stamp)| Watched { path: path.into(), seen: stamp, read: stamp };
        Self { files: store.stamps().map(watched).collect() }
    }

    /// Whether there is nothing to look after.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a file has changed since it was read, and all of them rest since the last look: one that is being
    /// written is left alone, and so is a key whose certificate is still to come.
    pub fn look(&mut self) -> bool {
        let (mut changed, mut rest) = (false, true);
        for watched in &mut self.files {
            let now = Stamp::at(&watched.path);
            changed |= now != watched.read;
            rest &= now == watched.seen;
            watched.seen = now;
        }
        changed && rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use std::fs;

    fn issue(folder: &Path, name: &str, year: i32) -> CertificateFiles {
        let files = CertificateFiles {
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([format!("{name}.test")]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn config(files: &[&CertificateFiles]) -> Config {
        let certificate = |files: &&CertificateFiles| {
            format!("{{cert: {}, key: {}}}", files.cert.display(), files.key.display())
        };
        let certificates: Vec<_> = files.iter().map(certificate).collect();
        let text = format!(
            "listen: [{{address: 127.0.0.1:1, tls: {{certificates: [{}]}}}}]",
            certificates.join(", ")
        );
        crate::config::parse("test.yaml", &text).unwrap()
    }

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    #[test]
    fn a_new_version_of_no_use_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (issue(folder.path(), "a", 2100), issue(folder.path(), "b", 2100));
        let config = config(&[&a, &b]);
        let (store, errors) = Store::default().read(&config, "me", NOW);
        assert!(errors.is_empty() && store.notes(NOW).is_empty(), "{errors:?}");
        let before = Arc::clone(store.pair(&a).unwrap());
        let same = |store: &Store| Arc::ptr_eq(store.pair(&a).unwrap(), &before);

        fs::copy(&b.key, &a.key).unwrap();
        let (store, errors) = store.read(&config, "me", NOW);
        assert!(errors.is_empty() && same(&store));
        let note = store.notes(NOW).join("\n");
        assert!(note.contains("a.key: this key is not the one of the certificate"), "{note}");
        assert!(note.ends_with("the one before stays in force"), "{note}");

        issue(folder.path(), "a", 2001);
        let (store, errors) = store.read(&config, "me", NOW);
        assert!(errors.is_empty() && same(&store));
        assert!(store.notes(NOW).join("\n").contains("expired on 2001-01-01"));

        fs::remove_file(&a.cert).unwrap();
        let (store, errors) = store.read(&config, "me", NOW);
        assert!(errors.is_empty() && same(&store));
        assert!(store.notes(NOW).join("\n").contains("cannot be read"));

        issue(folder.path(), "a", 2101);
        let (store, _) = store.read(&config, "me", NOW);
        assert!(!same(&store) && store.notes(NOW).is_empty());
    }

    #[test]
    fn what_ends_soon_is_spoken_of_and_what_has_ended_is_not_added() {
        let folder = tempfile::tempdir().unwrap();
        let files = issue(folder.path(), "a", 2028);
        let end = UtcMillis(1_830_297_600_000);
        let config = config(&[&files]);
        let (store, _) = Store::default().read(&config, "me", NOW);
        let day = Duration::from_secs(86_400);
        assert_eq!(store.notes(UtcMillis(end.0 - 1).after(Duration::ZERO)).len(), 1);
        assert!(store.notes(end.after(day)).join("").contains("expired on 2028-01-01"));
        assert!(store.expired_since(&Store::default(), NOW).is_empty());
        assert_eq!(store.expired_since(&Store::default(), end).len(), 1);
        assert!(store.expired_since(&store, end).is_empty());
    }

    #[test]
    fn a_change_is_seen_once_all_files_rest() {
        let folder = tempfile::tempdir().unwrap();
        let files = issue(folder.path(), "a", 2100);
        let (store, _) = Store::default().read(&config(&[&files]), "me", NOW);
        let mut watch = Watch::new(&store);
        assert!(!watch.look());
        issue(folder.path(), "a", 2101);
        assert!(!watch.look(), "it changed since the last look");
        assert!(watch.look());
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = issue(folder.path(), "a", 2100);
        let said = |config: &Config| {
            let errors = Store::default().read(config, "me", NOW).1;
            errors.iter().map(|error| error.to_string()).collect::<Vec<_>>().join("\n")
        };
        let config = config(&[&files]);
        fs::write(&files.cert, "nothing").unwrap();
        assert!(said(&config).contains("no certificate in it"), "{}", said(&config));
        issue(folder.path(), "a", 2100);
        fs::write(&files.key, "nothing").unwrap();
        assert!(said(&config).contains("no private key in it"), "{}", said(&config));
        fs::remove_file(&files.key).unwrap();
        fs::create_dir(&files.key).unwrap();
        assert!(said(&config).contains("no regular file"), "{}", said(&config));
        assert!(said(&config).contains("a.key"), "{}", said(&config));
    }
}
