//! Replay buffers: which rows are kept and what is stored with them. Save and load are exact.
//!
//! Rows are ids (8 bytes) with, optionally, a stored vector each (logits, hidden states) and their columns as they were
//! seen. A buffer is bounded by rows and, if wanted, by bytes. All randomness comes in as an argument.

mod columns;
mod herding;

pub use columns::Layout;
pub use herding::{herding, mean, normalize};

use crate::state::{StateReader, StateWriter};
use crate::vector::{from_bytes, to_bytes};
use crate::{Error, Random, Result};
use std::collections::BTreeMap;

/// One kept row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slot {
    /// Row id: the host reads the row again.
    pub row: i64,
    /// Key for balancing: a class, a task, or both packed by the caller.
    pub key: i64,
    /// Number of the task that it came from.
    pub task: u64,
    /// Vector stored with the row; empty if none.
    pub values: Vec<f32>,
    /// Columns stored with the row, as the buffer's [`Layout`] says; empty if none.
    pub stored: Vec<u8>,
}

impl Slot {
    /// Memory of the row, without the allocator's own.
    fn bytes(&self) -> u64 {
        (size_of::<Self>() + self.values.len() * size_of::<f32>() + self.stored.len()) as u64
    }
}

/// How rows enter and leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Offer number n enters with probability capacity/n and replaces a uniform slot (Vitter 1985, algorithm R).
    Reservoir,
    /// Greedy by key (GDumb, ECCV 2020): a row whose key has its share is dropped; else it enters and, when full, a
    /// random row of the largest key leaves.
    Balanced,
    /// Each key (task) keeps its newest rows in a ring of equal share.
    Ring,
}

/// A bounded set of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    policy: Policy,
    capacity: usize,
    /// Bound in bytes; the first row decides how many rows fit.
    max_bytes: Option<u64>,
    /// Columns that are stored.
    layout: Layout,
    /// Offers so far, also those that did not enter.
    seen: u64,
    slots: Vec<Slot>,
    /// Ring: next position per key. Balanced: keys that were ever offered.
    keys: BTreeMap<i64, u64>,
}

impl Buffer {
    /// An empty buffer; capacity 0 never keeps a row.
    pub fn new(policy: Policy, capacity: usize) -> Self {
        Self {
            policy,
            capacity,
            max_bytes: None,
            layout: Layout::default(),
            seen: 0,
            slots: Vec::new(),
            keys: BTreeMap::new(),
        }
    }

    /// Keeps fewer rows if so many bytes hold fewer: `max / bytes of the first row`.
    #[must_use]
    pub fn within(mut self, max_bytes: Option<u64>) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Memory of the kept rows.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(Slot::bytes).sum()
    }
    /// Columns that are stored.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
    /// Fixes the columns that are stored, once; later calls change nothing.
    pub fn store(&mut self, layout: impl FnOnce() -> Layout) {
        if self.layout.is_empty() {
            self.layout = layout();
        }
    }
    /// How rows enter and leave.
    pub fn policy(&self) -> Policy {
        self.policy
    }
    /// Most rows it keeps.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
    /// Rows kept.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
    /// Rows offered so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }
    /// The kept rows.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Offers a row. `slot` is only called if it enters; the place it took is returned.
    pub fn offer(
        &mut self,
        key: i64,
        rng: &mut Random,
        slot: impl FnOnce() -> Slot,
    ) -> Option<usize> {
        self.seen += 1;
        if self.capacity == 0 {
            return None;
        }
        if let Some(max) = self.max_bytes.take() {
            let slot = Slot { key, ..slot() };
            self.capacity = self.capacity.min((max / slot.bytes().max(1)) as usize);
            let place = self.place(key, rng).filter(|_| self.capacity > 0)?;
            self.slots.push(slot);
            return Some(place);
        }
        let place = self.place(key, rng)?;
        let slot = Slot { key, ..slot() };
        match self.slots.get_mut(place) {
            Some(old) => *old = slot,
            None => self.slots.push(slot),
        }
        Some(place.min(self.slots.len() - 1))
    }

    fn place(&mut self, key: i64, rng: &mut Random) -> Option<usize> {
        match self.policy {
            Policy::Reservoir => self.reservoir_place(rng),
            Policy::Balanced => self.balanced_place(key, rng),
            Policy::Ring => self.ring_place(key),
        }
    }

    fn reservoir_place(&self, rng: &mut Random) -> Option<usize> {
        if self.slots.len() < self.capacity {
            return Some(self.slots.len());
        }
        // One draw decides both: below capacity with probability capacity/seen, and then uniform over the slots.
        let draw = rng.below(self.seen) as usize;
        (draw < self.capacity).then_some(draw)
    }

    fn balanced_place(&mut self, key: i64, rng: &mut Random) -> Option<usize> {
        self.keys.entry(key).or_insert(0);
        let share = (self.capacity / self.keys.len()).max(1);
        let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
        self.slots.iter().for_each(|s| *counts.entry(s.key).or_insert(0) += 1);
        if counts.get(&key).copied().unwrap_or(0) >= share {
            return None;
        }
        if self.slots.len() < self.capacity {
            return Some(self.slots.len());
        }
        let largest = counts.iter().max_by_key(|(k, n)| (**n, std::cmp::Reverse(**k)))?.0;
        let of_largest: Vec<usize> =
            (0..self.slots.len()).filter(|i| self.slots[*i].key == *largest).collect();
        of_largest.get(rng.below(of_largest.len() as u64) as usize).copied()
    }

    fn ring_place(&mut self, key: i64) -> Option<usize> {
        if let std::collections::btree_map::Entry::Vacant(new) = self.keys.entry(key) {
            new.insert(0);
            self.shrink_rings();
        }
        let share = (self.capacity / self.keys.len()).max(1);
        let of_key: Vec<usize> =
            (0..self.slots.len()).filter(|i| self.slots[*i].key == key).collect();
        let next = self.keys.get_mut(&key)?;
        if of_key.len() < share && self.slots.len() < self.capacity {
            return Some(self.slots.len());
        }
        let place = of_key.get((*next % of_key.len().max(1) as u64) as usize).copied();
        *next += 1;
        place
    }

    /// A new key takes its share from the others' oldest rows.
    fn shrink_rings(&mut self) {
        let share = (self.capacity / self.keys.len()).max(1);
        let mut kept: Vec<Slot> = Vec::with_capacity(self.slots.len());
        for (key, next) in &mut self.keys {
            let mut ring: Vec<Slot> =
                self.slots.iter().filter(|s| s.key == *key).cloned().collect();
            if ring.len() > share {
                let oldest = (*next % ring.len() as u64) as usize;
                ring.rotate_left(oldest);
                ring.drain(..ring.len() - share);
                *next = 0;
            }
            kept.append(&mut ring);
        }
        self.slots = kept;
    }

    /// `min(n, len)` different slots, uniform, in random order.
    pub fn draw(&self, n: usize, rng: &mut Random) -> Vec<&Slot> {
        rng.sample(self.slots.len(), n).into_iter().map(|i| &self.slots[i]).collect()
    }

    /// As [`Buffer::draw`], among the rows that `wanted` lets through.
    pub fn draw_among(
        &self,
        n: usize,
        rng: &mut Random,
        wanted: impl Fn(&Slot) -> bool,
    ) -> Vec<&Slot> {
        let among: Vec<&Slot> = self.slots.iter().filter(|s| wanted(s)).collect();
        rng.sample(among.len(), n).into_iter().map(|i| among[i]).collect()
    }

    /// As [`Buffer::draw`], from the keys in turn: no key gives two rows more than another that has rows left.
    pub fn draw_balanced(&self, n: usize, rng: &mut Random) -> Vec<&Slot> {
        let mut by_key: BTreeMap<i64, Vec<&Slot>> = BTreeMap::new();
        self.slots.iter().for_each(|s| by_key.entry(s.key).or_default().push(s));
        let mut piles: Vec<Vec<&Slot>> = by_key.into_values().collect();
        piles.iter_mut().for_each(|pile| rng.shuffle(pile));
        // Keys that come first would otherwise get the odd rows every time.
        rng.shuffle(&mut piles);
        let deepest = piles.iter().map(Vec::len).max().unwrap_or(0);
        let turns = (0..deepest).flat_map(|i| piles.iter().filter_map(move |p| p.get(i).copied()));
        turns.take(n).collect()
    }

    /// Writes everything.
    ///
    /// # Errors
    /// What the writer says.
    pub fn save(&self, state: &mut StateWriter<'_>) -> Result<()> {
        state.u64(self.capacity as u64)?;
        state.u64(self.max_bytes.unwrap_or(u64::MAX))?;
        self.layout.save(state)?;
        state.u64(self.seen)?;
        state.u64(self.keys.len() as u64)?;
        for (key, next) in &self.keys {
            state.u64(*key as u64)?;
            state.u64(*next)?;
        }
        let rows: Vec<i64> = self.slots.iter().map(|s| s.row).collect();
        let keys: Vec<i64> = self.slots.iter().map(|s| s.key).collect();
        let widths: Vec<u32> = self.slots.iter().map(|s| s.values.len() as u32).collect();
        let values: Vec<f32> = self.slots.iter().flat_map(|s| s.values.iter().copied()).collect();
        state.bytes(&to_bytes(&rows))?;
        state.bytes(&to_bytes(&keys))?;
        state.bytes(&to_bytes(&widths))?;
        state.bytes(&to_bytes(&values))?;
        let tasks: Vec<u32> = self.slots.iter().map(|s| s.task as u32).collect();
        state.bytes(&to_bytes(&tasks))?;
        let stored: Vec<u8> = self.slots.iter().flat_map(|s| s.stored.iter().copied()).collect();
        state.bytes(&stored)
    }

    /// Reads what [`Buffer::save`] of a buffer of equal policy and capacity wrote.
    ///
    /// # Errors
    /// BAD_DATA; the buffer is unchanged then.
    pub fn load(&mut self, state: &mut StateReader<'_>) -> Result<()> {
        let capacity = state.u64()?;
        let max_bytes = Some(state.u64()?).filter(|max| *max != u64::MAX);
        let fewer = self.max_bytes.is_some() && capacity <= self.capacity as u64;
        if capacity != self.capacity as u64 && !fewer {
            return Err(Error::bad_data(format!(
                "a buffer of {capacity} rows, expected {}",
                self.capacity
            )));
        }
        let layout = Layout::load(state)?;
        let (seen, num_keys) = (state.u64()?, state.u64()?);
        let mut ring = BTreeMap::new();
        for _ in 0..num_keys {
            ring.insert(state.u64()? as i64, state.u64()?);
        }
        let rows = from_bytes::<i64>(&state.bytes()?)?;
        let keys = from_bytes::<i64>(&state.bytes()?)?;
        let widths = from_bytes::<u32>(&state.bytes()?)?;
        let values = from_bytes::<f32>(&state.bytes()?)?;
        let tasks = from_bytes::<u32>(&state.bytes()?)?;
        let stored = state.bytes()?;
        let total: usize = widths.iter().map(|w| *w as usize).sum();
        let count = rows.len();
        let fits = [keys.len(), widths.len(), tasks.len()] == [count; 3]
            && count as u64 <= capacity
            && stored.len() == count * layout.row_bytes();
        if !fits || total != values.len() || seen < count as u64 {
            return Err(Error::bad_data("the buffer's parts do not fit together"));
        }
        let mut rest = values.as_slice();
        self.slots.clear();
        let row_bytes = layout.row_bytes();
        for (i, (row, width)) in rows.iter().zip(&widths).enumerate() {
            let (now, later) = rest.split_at(*width as usize);
            self.slots.push(Slot {
                row: *row,
                key: keys[i],
                task: u64::from(tasks[i]),
                values: now.to_vec(),
                stored: stored[i * row_bytes..(i + 1) * row_bytes].to_vec(),
            });
            rest = later;
        }
        (self.seen, self.keys) = (seen, ring);
        (self.capacity, self.max_bytes, self.layout) = (capacity as usize, max_bytes, layout);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(row: i64) -> Slot {
        Slot { row, task: row as u64 / 10, values: vec![row as f32; 2], ..Slot::default() }
    }

    fn fill(
        policy: Policy,
        capacity: usize,
        offers: impl IntoIterator<Item = (i64, i64)>,
        seed: u64,
    ) -> Buffer {
        let mut buffer = Buffer::new(policy, capacity);
        for (n, (row, key)) in offers.into_iter().enumerate() {
            buffer.offer(key, &mut Random::new([seed, n as u64]), || slot(row));
        }
        buffer
    }

    fn bytes(buffer: &Buffer) -> Vec<u8> {
        let mut out = Vec::new();
        let mut state = StateWriter::begin(&mut out, "test", 1, "").unwrap();
        buffer.save(&mut state).unwrap();
        state.finish().unwrap();
        out
    }

    #[test]
    fn a_reservoir_keeps_every_position_equally_often() {
        let (offers, capacity, seeds) = (40i64, 10, 1_000u64);
        let mut kept = vec![0f64; offers as usize];
        for seed in 0..seeds {
            let buffer = fill(Policy::Reservoir, capacity, (0..offers).map(|i| (i, 0)), seed);
            assert_eq!(buffer.len(), capacity);
            buffer.slots().iter().for_each(|s| kept[s.row as usize] += 1.0);
        }
        let expected = seeds as f64 * capacity as f64 / offers as f64;
        let chi2: f64 = kept.iter().map(|k| (k - expected).powi(2) / expected).sum();
        // 39 degrees of freedom (less, as rows exclude each other): mean 39·(1 − 10/40), 99.9 % below 72.
        assert!(chi2 < 72.0, "{chi2}");
        assert!(chi2 > 8.0, "suspiciously even: {chi2}");
    }

    #[test]
    fn a_balanced_buffer_gives_every_key_its_share() {
        let offers = (0..300).map(|i| (i, if i < 200 { 0 } else { i % 3 }));
        let buffer = fill(Policy::Balanced, 30, offers, 1);
        let count = |key| buffer.slots().iter().filter(|s| s.key == key).count();
        assert_eq!((count(0), count(1), count(2)), (10, 10, 10));
    }

    #[test]
    fn a_ring_keeps_the_newest_rows_of_each_key() {
        let buffer = fill(Policy::Ring, 6, (0..20).map(|i| (i, i / 10)), 1);
        let mut rows: Vec<i64> = buffer.slots().iter().map(|s| s.row).collect();
        rows.sort_unstable();
        assert_eq!(rows, [7, 8, 9, 17, 18, 19]);
    }

    #[test]
    fn what_was_saved_loads_and_saves_as_equal_bytes() {
        for policy in [Policy::Reservoir, Policy::Balanced, Policy::Ring] {
            let buffer = fill(policy, 7, (0..50).map(|i| (i, i % 3)), 2);
            let saved = bytes(&buffer);
            let mut loaded = Buffer::new(policy, 7);
            let mut from = saved.as_slice();
            let mut state = StateReader::begin(&mut from, "test", 1, "").unwrap();
            loaded.load(&mut state).unwrap();
            state.finish().unwrap();
            assert_eq!(loaded, buffer);
            assert_eq!(bytes(&loaded), saved);
        }
    }

    #[test]
    fn a_byte_budget_bounds_the_rows_and_survives_a_save() {
        let each = slot(0).bytes();
        let mut buffer = Buffer::new(Policy::Reservoir, 100).within(Some(each * 5 + 1));
        let empty = bytes(&buffer);
        for row in 0..50 {
            buffer.offer(0, &mut Random::new([1, row as u64]), || slot(row));
        }
        assert_eq!((buffer.len(), buffer.capacity(), buffer.bytes()), (5, 5, 5 * each));
        for saved in [empty, bytes(&buffer)] {
            let mut loaded = Buffer::new(Policy::Reservoir, 100).within(Some(each * 5 + 1));
            let mut from = saved.as_slice();
            let mut state = StateReader::begin(&mut from, "test", 1, "").unwrap();
            loaded.load(&mut state).unwrap();
            assert_eq!(bytes(&loaded), saved);
        }
    }

    #[test]
    fn stored_columns_come_back_byte_for_byte() {
        let pixels =
            crate::Column::new("pixels", &[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let labels = crate::Column::new("labels", &[2], &[7i64, 8]).unwrap();
        let mut buffer = Buffer::new(Policy::Ring, 4);
        pixels
            .view(|p| {
                labels.view(|l| {
                    buffer.store(|| Layout::of(&[p, l]));
                    for (i, stored) in
                        buffer.layout().clone().rows(&[p, l])?.into_iter().enumerate()
                    {
                        let row = i as i64;
                        buffer.offer(0, &mut Random::new([0, 0]), || Slot {
                            row,
                            stored,
                            ..Slot::default()
                        });
                    }
                    Ok(())
                })
            })
            .unwrap();
        let saved = bytes(&buffer);
        let mut loaded = Buffer::new(Policy::Ring, 4);
        let mut from = saved.as_slice();
        let mut state = StateReader::begin(&mut from, "test", 1, "").unwrap();
        loaded.load(&mut state).unwrap();
        assert_eq!(loaded, buffer);
        let rows = loaded.slots().iter().map(|s| s.stored.as_slice());
        assert_eq!(loaded.layout().columns(rows).unwrap(), [pixels, labels]);
    }

    #[test]
    fn a_balanced_draw_takes_from_the_keys_in_turn() {
        let offers = (0..30).map(|i| (i, i64::from(i >= 27)));
        let buffer = fill(Policy::Reservoir, 30, offers, 4);
        let drawn = buffer.draw_balanced(6, &mut Random::new([1, 1]));
        assert_eq!(drawn.iter().filter(|s| s.key == 1).count(), 3);
        let all = buffer.draw_balanced(99, &mut Random::new([1, 1]));
        assert_eq!(all.len(), 30);
        let old = buffer.draw_among(9, &mut Random::new([1, 1]), |s| s.task == 2);
        assert!(old.len() == 9 && old.iter().all(|s| s.row >= 20));
    }

    #[test]
    fn a_flipped_or_cut_state_is_refused() {
        let saved = bytes(&fill(Policy::Reservoir, 4, (0..9).map(|i| (i, 0)), 3));
        let load = |bytes: &[u8]| {
            let mut from = bytes;
            let mut state = StateReader::begin(&mut from, "test", 1, "")?;
            Buffer::new(Policy::Reservoir, 4).load(&mut state)?;
            state.finish()
        };
        load(&saved).unwrap();
        for at in 0..saved.len() {
            let mut flipped = saved.clone();
            flipped[at] ^= 4;
            assert!(load(&flipped).is_err(), "flip at {at}");
            assert!(load(&saved[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn no_capacity_keeps_nothing_and_draws_nothing() {
        let buffer = fill(Policy::Reservoir, 0, (0..9).map(|i| (i, 0)), 3);
        assert!(buffer.is_empty() && buffer.seen() == 9);
        assert!(buffer.draw(5, &mut Random::new([0, 0])).is_empty());
    }
}
