//! Which names are one file. Library and binary both compile this: it is no part of the interface.

use std::path::{Path, PathBuf};

/// Whether both names lead to one file that is there: through links, and whatever their letters.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    let identity = |path: &Path| {
        let about = std::fs::metadata(path).ok()?;
        Some((std::os::unix::fs::MetadataExt::dev(&about), std::os::unix::fs::MetadataExt::ino(&about)))
    };
    #[cfg(not(unix))]
    let identity = |path: &Path| std::fs::canonicalize(path).ok();
    matches!((identity(a), identity(b)), (Some(a), Some(b)) if a == b)
}

/// Whether a file, there already or not, has its place in `folder` or below.
pub fn lies_in(path: &Path, folder: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::canonicalize(parent).is_ok_and(|parent| parent.ancestors().any(|above| same_file(above, folder)))
}

/// Whether a file is one of `folder` or of a folder in it, by whatever name.
pub fn belongs_to(path: &Path, folder: &Path) -> bool {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    path.exists()
        && entries(folder)
            .into_iter()
            .any(|entry| same_file(path, &entry) || entries(&entry).into_iter().any(|inner| same_file(path, &inner)))
}
