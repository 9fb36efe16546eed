//! Hash tables in which one probe finds a key or shows that it is absent.

/// A table without collisions. Keys whose hashes begin alike share a pilot, a number that is mixed into their hashes and is chosen so
/// that no two keys have the same place. (Source: Belazzougui, Botelho, Dietzfelbinger, "Hash, displace, and compress"; the term
/// "pilot" is from PTHash.)
#[derive(Clone, Copy)]
pub struct Pilots<'t, T> {
    pilots: &'t [u8],
    pub entries: &'t [T],
    pilot_shift: u32,
    shift: u32,
}

impl<'t, T> Pilots<'t, T> {
    /// Both lengths must be powers of two above 1.
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

/// Searches pilots for the entries. Returns the pilots and the table.
///
/// The search succeeds for tables that are three quarters full, and often fails for fuller ones. Then it is repeated with a larger
/// table.
pub fn place<T: Copy + Default + PartialEq>(
    entries: &[T],
    hash: impl Fn(T) -> u64,
) -> Result<(Vec<u8>, Vec<T>), String> {
    let len = (entries.len() + entries.len() / 4).next_power_of_two().max(2);
    let larger = (0..4).map(|doubled| len << doubled);
    let placed = larger.into_iter().find_map(|len| place_in(len, entries, &hash));
    placed.ok_or("too many of its tokens have the same hash".to_string())
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
    // The largest groups first, while most places are free.
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
