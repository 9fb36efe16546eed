//! Work shared between rayon's threads and the one that asks.

use std::sync::Mutex;

/// Does `work` on every item. The calling thread works too, so that a helper which wakes up late (20 to 50 µs,
/// measured) costs little; items should be worth some 10 µs each. Which thread takes which item is not fixed, so
/// items must not depend on each other.
pub(crate) fn for_each<I: Iterator + Send>(items: I, work: impl Fn(I::Item) + Sync) {
    let items = Mutex::new(items);
    // A statement of its own: the lock must be free again while an item is worked on.
    let next = || items.lock().ok().and_then(|mut items| items.next());
    let drain = || {
        while let Some(item) = next() {
            work(item)
        }
    };
    rayon::in_place_scope(|scope| {
        (1..rayon::current_num_threads()).for_each(|_| scope.spawn(|_| drain()));
        drain();
    });
}
