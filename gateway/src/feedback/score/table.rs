//! A bounded table that forgets the least important first: entries lie in lists by level, each list by when it was
//! last touched. Everything is O(1), a sweep aside, which is as long as it is told to be.

use std::collections::HashMap;

use crate::feedback::decision::Subject;

/// Levels of importance.
pub(super) const LEVELS: usize = 8;
const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub(super) struct Table<V> {
    most: usize,
    /// Entries of this level and above make no room.
    keep_from: u8,
    places: HashMap<Subject, u32>,
    slots: Vec<Slot<V>>,
    free: Vec<u32>,
    lists: [List; LEVELS],
    /// Where the next sweep begins.
    hand: usize,
}

#[derive(Clone, Debug)]
struct Slot<V> {
    entry: Option<(Subject, V)>,
    level: u8,
    older: u32,
    newer: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
}

impl<V> Table<V> {
    pub(super) fn new(most: usize, keep_from: u8) -> Self {
        Self {
            most,
            keep_from,
            places: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            lists: [List { oldest: NONE, newest: NONE }; LEVELS],
            hand: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.places.len() >= self.most
    }

    pub(super) fn get(&self, subject: &Subject) -> Option<&V> {
        let slot = self.slots.get(*self.places.get(subject)? as usize)?;
        slot.entry.as_ref().map(|(_, value)| value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Subject, &V)> {
        let entries = self.slots.iter().filter_map(|slot| slot.entry.as_ref());
        entries.map(|(subject, value)| (subject, value))
    }

    pub(super) fn get_mut(&mut self, subject: &Subject) -> Option<&mut V> {
        let place = self.find(subject)?;
        self.value(place)
    }

    /// Where an entry lies, until another one is taken out: so that it is looked up once.
    pub(super) fn find(&self, subject: &Subject) -> Option<u32> {
        self.places.get(subject).copied()
    }

    pub(super) fn value(&mut self, place: u32) -> Option<&mut V> {
        self.slots.get_mut(place as usize)?.entry.as_mut().map(|(_, value)| value)
    }

    /// Makes an entry of the lowest level where there is none.
    pub(super) fn insert(&mut self, subject: Subject, value: V) -> u32 {
        let slot = Slot { entry: Some((subject, value)), level: 0, older: NONE, newer: NONE };
        let place = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(place as usize) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        self.places.insert(subject, place);
        self.link(place, 0);
        place
    }

    /// Takes out what is least important, if anything may go.
    pub(super) fn evict(&mut self) -> Option<(Subject, V)> {
        let levels = self.lists.iter().take(usize::from(self.keep_from));
        let place = levels.map(|list| list.oldest).find(|place| *place != NONE)?;
        self.take(place)
    }

    pub(super) fn remove(&mut self, subject: &Subject) -> Option<V> {
        let place = *self.places.get(subject)?;
        self.take(place).map(|(_, value)| value)
    }

    /// Notes that an entry was touched, and how important it is now.
    pub(super) fn touch(&mut self, place: u32, level: u8) {
        self.unlink(place);
        self.link(place, level);
    }

    /// Looks at the next entries: `age` says how important one is now, or `None` for it to go. Gives what went.
    pub(super) fn sweep(
        &mut self,
        entries: usize,
        mut age: impl FnMut(&mut V) -> Option<u8>,
    ) -> Vec<(Subject, V)> {
        let mut gone = Vec::new();
        for _ in 0..entries.min(self.slots.len()) {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let place = self.hand as u32;
            let Some(value) = self.value(place) else { continue };
            match age(value) {
                None => gone.extend(self.take(place)),
                Some(level) if self.slots.get(self.hand).is_some_and(|slot| slot.level > level) => {
                    self.unlink(place);
                    self.link(place, level);
                }
                Some(_) => {}
            }
        }
        gone
    }

    fn take(&mut self, place: u32) -> Option<(Subject, V)> {
        let entry = self.slots.get_mut(place as usize)?.entry.take()?;
        self.unlink(place);
        self.places.remove(&entry.0);
        self.free.push(place);
        Some(entry)
    }

    /// Puts an entry at the new end of a list.
    fn link(&mut self, place: u32, level: u8) {
        let level = level.min(LEVELS as u8 - 1);
        let Some(list) = self.lists.get_mut(usize::from(level)) else { return };
        let older = std::mem::replace(&mut list.newest, place);
        if older == NONE {
            list.oldest = place;
        }
        if let Some(slot) = self.slots.get_mut(place as usize) {
            (slot.level, slot.older, slot.newer) = (level, older, NONE);
        }
        if let Some(slot) = self.slots.get_mut(older as usize) {
            slot.newer = place;
        }
    }

    fn unlink(&mut self, place: u32) {
        let Some(slot) = self.slots.get(place as usize) else { return };
        let (older, newer, level) = (slot.older, slot.newer, slot.level);
        let Some(list) = self.lists.get_mut(usize::from(level)) else { return };
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => list.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => list.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::decision::Place;
    use proptest::prelude::*;

    fn subject(number: u8) -> Subject {
        let prefix = std::net::IpAddr::from([192, 0, 2, number]).into();
        Subject { prefix, place: Place::Kernel }
    }

    proptest! {
        /// The same by a list of (subject, level) in the order of the last touch.
        #[test]
        fn the_least_important_goes_first(
            steps in prop::collection::vec((0_u8..12, 0_u8..8, 0_u8..4), 1..200),
        ) {
            let mut table = Table::new(6, 4);
            let mut model: Vec<(Subject, u8)> = Vec::new();
            for (number, level, kind) in steps {
                let subject = subject(number);
                let known = model.iter().position(|(known, _)| *known == subject);
                match (kind, known) {
                    (0, Some(known)) => {
                        prop_assert_eq!(table.remove(&subject), Some(number));
                        model.remove(known);
                    }
                    (1, _) => {
                        let gone = table.sweep(100, |value| (*value != number).then_some(level));
                        prop_assert!(gone.iter().all(|(_, value)| *value == number));
                        model.retain(|(known, _)| *known != subject);
                        model.iter_mut().for_each(|(_, old)| *old = level.min(*old));
                        // A sweep goes round; within a level its order is its own.
                        model = table.in_order();
                    }
                    (_, Some(known)) => {
                        table.touch(table.find(&subject).unwrap(), level);
                        model.remove(known);
                        model.push((subject, level));
                    }
                    (_, None) => {
                        if table.is_full() {
                            let lowest = model.iter().map(|(_, level)| *level).min().unwrap();
                            let first = model.iter().position(|(_, level)| *level == lowest);
                            let expected = (lowest < 4).then(|| model.remove(first.unwrap()).0);
                            let evicted = table.evict().map(|(subject, _)| subject);
                            prop_assert_eq!(evicted, expected);
                        }
                        if !table.is_full() {
                            table.insert(subject, number);
                            model.push((subject, 0));
                        }
                    }
                }
                prop_assert!(table.len() <= 6 && table.slots.len() <= 6);
                prop_assert_eq!(table.len(), model.len());
                let mut by_level = model.clone();
                by_level.sort_by_key(|(_, level)| *level);
                prop_assert_eq!(table.in_order(), by_level);
            }
        }
    }

    impl<V> Table<V> {
        /// All entries, the first to go first.
        fn in_order(&self) -> Vec<(Subject, u8)> {
            let mut found = Vec::new();
            for list in &self.lists {
                let mut place = list.oldest;
                while let Some(slot) = self.slots.get(place as usize) {
                    found.push((slot.entry.as_ref().unwrap().0, slot.level));
                    place = slot.newer;
                }
            }
            found
        }
    }
}
