//! Shapes of values that a section may have besides those that serde derives: names in their order, one word or a
//! section, one word or a list.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

use super::at::At;
use super::limits::RawHeader;
use super::raw::{RawProtectedPorts, RawTargets};

/// A mapping from names, in the order of the file.
#[derive(Debug)]
pub(super) struct Named<T>(pub(super) Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = Named<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("names, each with a section")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut named = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    named.push(entry);
                }
                Ok(Named(named))
            }
        }

        deserializer.deserialize_map(Names(PhantomData))
    }
}

impl<'de> Deserialize<'de> for RawProtectedPorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ports;

        impl<'de> Visitor<'de> for Ports {
            type Value = RawProtectedPorts;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("`listeners` or a list of ports")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    "listeners" => Ok(RawProtectedPorts::Listeners),
                    _ => Err(E::invalid_type(Unexpected::Str(text), &self)),
                }
            }

            /// A mistake that has been reported.
            fn visit_none<E>(self) -> Result<Self::Value, E> {
                Ok(RawProtectedPorts::Listeners)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut ports = Vec::new();
                while let Some(port) = list.next_element()? {
                    ports.push(port);
                }
                Ok(RawProtectedPorts::Ports(ports))
            }
        }

        deserializer.deserialize_any(Ports)
    }
}

impl<'de> Deserialize<'de> for RawTargets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Targets;

        impl<'de> Visitor<'de> for Targets {
            type Value = RawTargets;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the name of an upstream or a list of `{name, weight}`")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(RawTargets::One(text.to_owned()))
            }

            /// A mistake that has been reported.
            fn visit_none<E>(self) -> Result<Self::Value, E> {
                Ok(RawTargets::One(String::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut targets = Vec::new();
                while let Some(target) = list.next_element()? {
                    targets.push(target);
                }
                Ok(RawTargets::Several(targets))
            }
        }

        deserializer.deserialize_any(Targets)
    }
}

/// A value, or a list of such values. Lists of lists are none.
#[derive(Debug)]
pub(super) enum OneOrList<T> {
    One(T),
    List(Vec<T>),
}

impl<T> OneOrList<T> {
    /// Every value with its place.
    pub(super) fn each<'s>(&'s self, at: At<'s>) -> impl Iterator<Item = (&'s T, At<'s>)> {
        let (one, list) = match self {
            Self::One(one) => (Some((one, at)), [].as_slice()),
            Self::List(list) => (None, list.as_slice()),
        };
        let list = list.iter().enumerate().map(move |(index, one)| (one, at.item(index)));
        one.into_iter().chain(list)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrList<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("one entry or a list of them")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(StrDeserializer::new(text)).map(OneOrList::One)
            }

            /// A mistake that has been reported.
            fn visit_none<E>(self) -> Result<Self::Value, E> {
                Ok(OneOrList::List(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(OneOrList::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OneOrList::List(values))
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl Section for RawHeader {
    const EXPECTED: &'static str = "a word such as `user`, or `{header: NAME}`";
}

/// What most entries say in one word, and some in a section.
#[derive(Debug)]
pub(super) enum TextOr<S> {
    Text(String),
    Section(S),
}

/// The long form of an entry.
pub(super) trait Section {
    /// Both forms, in words.
    const EXPECTED: &'static str;
}

impl<'de, S: Section + Deserialize<'de>> Deserialize<'de> for TextOr<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<S>(PhantomData<S>);

        impl<'de, S: Section + Deserialize<'de>> Visitor<'de> for Either<S> {
            type Value = TextOr<S>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(S::EXPECTED)
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            /// A mistake that has been reported.
            fn visit_none<E>(self) -> Result<Self::Value, E> {
                Ok(TextOr::Text(String::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                S::deserialize(MapAccessDeserializer::new(map)).map(TextOr::Section)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}
