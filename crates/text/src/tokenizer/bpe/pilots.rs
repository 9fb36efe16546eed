//! Tables in which a key is found with one look, or is not there.

/// A table in which each key has a place of its own: keys whose hash begins alike share a pilot, a number that is mixed into their
/// hashes and was chosen so that none falls on another. (Source: Belazzougui, Botelho, Dietzfelbinger, "Hash, displace, and
/// compress"; the word is that of PTHash.)
#[derive(Clone, Copy)]
pub struct Pilots<'t, T> {
    pilots: &'t [u8],
    pub entries: &'t [T],
    pilot_shift: u32,
    shift: u32,
}

impl<'t, T> Pilots<'t, T> {
    /// Both lengths are powers of two above 1.
    #[inline]
    pub fn new(pilots: &'t [u8], entries: &'t [T]) -> Self {
        Pilots { pilots, entries, pilot_shift: shift(pilots.len()), shift: shift(entries.len()) }
    }

    #[inline]
    pub fn place(&self, hash: u64) -> usize {
        let pilot = self.pilots[(hash >> self.pilot_shift) as usize & (self.pilots.len() - 1)];
        place_of(hash, pilot, self.shift) & (self.entries.len() - 1)
    }
}

fn shift(len: usize) -> u32 {
    64 - len.trailing_zeros()
}

#[inline]
fn place_of(hash: u64, pilot: u8, shift: u32) -> usize {
    ((hash ^ u64::from(pilot).wrapping_mul(0xA24B_AED4_963E_E407)).wrapping_mul(0x9FB2_1C65_1E98_DF25) >> shift)
        as usize
}

/// Puts entries where their hashes and the pilots that it finds say: pilots and table.
///
/// A table that is three quarters full finds its pilots, a fuller one often does not; then a larger one is made.
pub fn place<T: Copy + Default + PartialEq>(
    entries: &[T],
    hash: impl Fn(T) -> u64,
) -> Result<(Vec<u8>, Vec<T>), String> {
    let len = (entries.len() + entries.len() / 4).next_power_of_two().max(2);
    let larger = (0..4).map(|doubled| len << doubled);
    let placed = larger.into_iter().find_map(|len| place_in(len, entries, &hash));
    placed.ok_or("too many of its tokens fall together in a table".to_string())
}

fn place_in<T: Copy + Default + PartialEq>(
    len: usize,
    entries: &[T],
    hash: &impl Fn(T) -> u64,
) -> Option<(Vec<u8>, Vec<T>)> {
    let groups = (len / 4).max(2);
    let mut by_group: Vec<Vec<T>> = vec![Vec::new(); groups];
    for entry in entries {
        by_group[(hash(*entry) >> shift(groups)) as usize].push(*entry);
    }
    // The largest groups first, while there is room.
    let mut order: Vec<usize> = (0..groups).collect();
    order.sort_by_key(|group| std::cmp::Reverse(by_group[*group].len()));
    let (mut pilots, mut table) = (vec![0; groups], vec![T::default(); len]);
    for group in order {
        let members = &by_group[group];
        let fits = |pilot: u8, table: &mut [T]| {
            for (index, member) in members.iter().enumerate() {
                let at = place_of(hash(*member), pilot, shift(len));
                if table[at] != T::default() {
                    for member in &members[..index] {
                        table[place_of(hash(*member), pilot, shift(len))] = T::default();
                    }
                    return false;
                }
                table[at] = *member;
            }
            true
        };
        pilots[group] = (0..=u8::MAX).find(|pilot| fits(*pilot, &mut table))?;
    }
    Some((pilots, table))
}
