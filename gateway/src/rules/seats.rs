//! Which list is counted where. Each has a seat, which the cells of its rules name, for as long as it is there, and
//! after that until somebody else needs it. No list is refused: those without a seat are counted together.

use gateway_common::layout::SEATS_LEN;
use gateway_common::rule::SEAT_FIRST;

use super::RuleSet;

/// The seat of all lists that have none of their own.
pub const SEAT_OTHERS: u8 = 0;

/// The seats, by the names of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seats {
    /// From [`SEAT_FIRST`] on; empty for what is nobody's.
    names: Vec<String>,
}

impl Seats {
    /// Those that lists had before, from [`SEAT_FIRST`] on.
    pub fn of(names: Vec<String>) -> Self {
        Self { names }
    }

    /// The seat of a list. One that has none is given one that is nobody's, or that of a list that `is_gone`;
    /// [`SEAT_OTHERS`] where there is none.
    pub fn place(&mut self, list: &str, is_gone: impl Fn(&str) -> bool) -> u8 {
        let ours = self.names.iter().position(|held| held == list);
        let free = || self.names.iter().position(String::is_empty);
        let new = || Some(self.names.len()).filter(|at| seat(*at).is_some());
        let gone = || self.names.iter().position(|held| is_gone(held));
        let at = ours.or_else(free).or_else(new).or_else(gone);
        let Some((at, seat)) = at.and_then(|at| Some((at, seat(at)?))) else { return SEAT_OTHERS };
        match self.names.get_mut(at) {
            Some(held) if held == list => {}
            Some(held) => list.clone_into(held),
            None => self.names.push(list.to_owned()),
        }
        seat
    }

    /// Whether a list has one, be it that it is gone.
    pub fn has(&self, list: &str) -> bool {
        self.names.iter().any(|held| held == list)
    }

    /// The seats that are somebody's, and whose.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &str)> {
        let named = self.names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        named.filter_map(|(at, name)| Some((seat(at)?, name.as_str())))
    }
}

impl RuleSet {
    /// No rules; its lists will have the seats that they had before.
    pub fn with_seats(seats: Seats) -> Self {
        Self { seats, ..Self::default() }
    }

    /// The seats of its lists.
    pub fn seats(&self) -> &Seats {
        &self.seats
    }
}

fn seat(at: usize) -> Option<u8> {
    let seat = at + usize::from(SEAT_FIRST);
    u8::try_from(seat).ok().filter(|_| seat < SEATS_LEN as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_seat_until_somebody_else_needs_it() {
        let mut seats = Seats::of(vec!["drop".to_owned(), String::new(), "edrop".to_owned()]);
        let is_gone = |list: &str| list == "drop";
        assert_eq!(seats.place("edrop", is_gone), 4);
        assert_eq!(seats.place("new", is_gone), 3, "what is nobody's first");
        let all: Vec<u8> = (0..250).map(|n| seats.place(&format!("list-{n}"), |_| false)).collect();
        assert_eq!(all, (5..=254).collect::<Vec<u8>>());
        assert_eq!(seats.place("last", is_gone), 255);
        assert_eq!(seats.place("drop", is_gone), 2, "it is back before anybody needed its seat");
        assert_eq!(seats.place("one more", |_| false), SEAT_OTHERS);
        assert_eq!(seats.place("one more", is_gone), 2);
        assert_eq!(seats.place("drop", |_| false), SEAT_OTHERS);
        assert_eq!(seats.iter().count(), 254);
    }
}
