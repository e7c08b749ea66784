//! A few things by key, the ones used last.

/// A small map that forgets what was used longest ago.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    room: usize,
    /// Used last comes last.
    entries: Vec<(K, V)>,
}

impl<K: PartialEq, V> Recent<K, V> {
    /// Room for so many.
    pub(crate) fn new(room: usize) -> Self {
        Self { room: room.max(1), entries: Vec::new() }
    }

    /// What is there under a key, which counts as using it.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        let place = self.entries.iter().position(|(known, _)| known == key)?;
        let entry = self.entries.remove(place);
        self.entries.push(entry);
        self.entries.last_mut().map(|(_, value)| value)
    }

    /// Puts something under a key; what had no room any more is dropped.
    pub(crate) fn put(&mut self, key: K, value: V) {
        self.entries.retain(|(known, _)| *known != key);
        if self.entries.len() == self.room {
            self.entries.remove(0);
        }
        self.entries.push((key, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let mut recent = Recent::new(2);
        recent.put("a", 1);
        recent.put("b", 2);
        assert_eq!(recent.get(&"a"), Some(&mut 1));
        recent.put("c", 3);
        assert_eq!(recent.get(&"b"), None, "`a` was used after it");
        assert_eq!(recent.get(&"a"), Some(&mut 1));
        recent.put("a", 4);
        assert_eq!(recent.get(&"a"), Some(&mut 4), "replaced, not doubled");
        assert_eq!(recent.get(&"c"), Some(&mut 3));
    }
}
