//! Compares paths by the file that they lead to.

use std::path::{Path, PathBuf};

/// Whether both paths lead to the same existing file, also through links and on case-insensitive file systems.
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

/// Whether the path of a file, existing or not, is in `folder` or below it.
pub fn lies_in(path: &Path, folder: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::canonicalize(parent).is_ok_and(|parent| parent.ancestors().any(|above| same_file(above, folder)))
}

/// Whether a file is the same as one in `folder` or in one of its folders, by any name.
pub fn belongs_to(path: &Path, folder: &Path) -> bool {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    path.exists()
        && entries(folder)
            .into_iter()
            .any(|entry| same_file(path, &entry) || entries(&entry).into_iter().any(|inner| same_file(path, &inner)))
}
