//! Who is calling: what a credential says, and what the configuration knows beside it.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Made;
use crate::config::Consumer;

/// A caller that is known. Nothing in it is a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name in `auth` of what knows it.
    pub authenticator: Box<str>,
    /// The party that calls, to which plans belong.
    pub consumer: Option<Box<str>>,
    /// The person that the party calls for.
    pub user: Option<Box<str>>,
    /// The id of its credential, which is no credential itself.
    pub key: Option<Box<str>>,
    /// Whom it belongs to.
    pub tenant: Option<Box<str>>,
    /// Its tier of limits.
    pub plan: Option<Box<str>>,
    /// What it is.
    pub roles: Vec<Box<str>>,
    /// What it was granted.
    pub scopes: Vec<Box<str>>,
    /// What it belongs to.
    pub groups: Vec<Box<str>>,
    /// Verified claims, where its credential has any.
    pub claims: Map<String, Value>,
    /// What services are told about it, made when it is first told.
    pub made: Made,
}

impl Identity {
    /// What it is called: the consumer, else the user, else the id of its credential.
    pub fn name(&self) -> Option<&str> {
        self.consumer.as_deref().or(self.user.as_deref()).or(self.key.as_deref())
    }
}

/// `consumers`, by name.
#[derive(Clone, Debug, Default)]
pub struct Consumers(HashMap<Box<str>, Consumer>);

impl Consumers {
    /// Those of a configuration.
    pub fn new(consumers: &[Consumer]) -> Self {
        let named = consumers.iter().map(|one| (Box::from(one.name.as_str()), one.clone()));
        Self(named.collect())
    }

    /// Adds what the configuration knows of the consumer. What the credential says about plan and tenant stands; roles,
    /// scopes and groups add up.
    pub fn complete(&self, mut identity: Identity) -> Identity {
        let known = identity.consumer.as_ref().and_then(|name| self.0.get(name));
        let Some(Consumer { plan, tenant, roles, scopes, groups, .. }) = known else {
            return identity;
        };
        identity.plan = identity.plan.or_else(|| plan.as_deref().map(Box::from));
        identity.tenant = identity.tenant.or_else(|| tenant.as_deref().map(Box::from));
        add(&mut identity.roles, roles);
        add(&mut identity.scopes, scopes);
        add(&mut identity.groups, groups);
        identity
    }
}

fn add(to: &mut Vec<Box<str>>, more: &[String]) {
    for text in more {
        if to.iter().all(|known| **known != **text) {
            to.push(text.as_str().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_goes_before_what_the_configuration_knows() {
        let consumers = Consumers::new(&[Consumer {
            name: "acme".to_owned(),
            plan: Some("gold".to_owned()),
            tenant: Some("eu".to_owned()),
            roles: vec!["a".to_owned(), "b".to_owned()],
            ..Consumer::default()
        }]);
        let of = |consumer: &str| Identity {
            consumer: Some(consumer.into()),
            plan: Some("free".into()),
            roles: vec!["b".into()],
            ..Identity::default()
        };
        let complete = consumers.complete(of("acme"));
        assert_eq!(complete.plan.as_deref(), Some("free"));
        assert_eq!(complete.tenant.as_deref(), Some("eu"));
        assert_eq!(complete.roles, ["b".into(), Box::from("a")]);
        assert_eq!(consumers.complete(of("other")), of("other"));
    }
}
