//! Files that are whole or not there: written beside their place, then renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::ReportError;

/// Where something is to be written, found to be possible.
#[derive(Debug)]
pub struct Destination {
    /// As it was given, for messages.
    named: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Standard output.
    Out,
    /// A device or a pipe: there is nothing to rename.
    Stream,
    /// A file, and the one beside it that becomes it.
    File { path: PathBuf, beside: PathBuf },
}

impl Destination {
    /// Looks whether `path` can be written; `-` is standard output. Leaves nothing there.
    ///
    /// # Errors
    /// [`ReportError::Write`].
    pub fn new(path: &Path) -> Result<Destination, ReportError> {
        let failed = |error| ReportError::Write(path.to_owned(), error);
        let place = if path == Path::new("-") { Place::Out } else { place(path).map_err(failed)? };
        if let Place::File { beside, .. } = &place {
            File::create_new(beside).map_err(failed)?;
            remove(beside);
        }
        Ok(Destination { named: path.to_owned(), place })
    }

    /// Writes all of `bytes`, or nothing that stays.
    ///
    /// # Errors
    /// [`ReportError::Write`].
    pub fn write(self, bytes: &[u8], out: &mut dyn Write) -> Result<(), ReportError> {
        let result = match &self.place {
            Place::Out => out.write_all(bytes).and_then(|()| out.flush()),
            Place::Stream => fs::write(&self.named, bytes),
            Place::File { path, beside } => {
                let result = write_new(beside, bytes).and_then(|()| fs::rename(beside, path));
                if result.is_err() {
                    remove(beside);
                }
                result
            }
        };
        result.map_err(|error| ReportError::Write(self.named, error))
    }
}

fn place(path: &Path) -> io::Result<Place> {
    let path = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => return Ok(Place::Stream),
        // The file that a link names is replaced, not the link.
        Ok(_) => fs::canonicalize(path)?,
        Err(_) => path.to_owned(),
    };
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let beside = path.with_file_name(name);
    Ok(Place::File { path, beside })
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    // Some file systems tell only now that they are full.
    file.sync_all()
}

/// Fails only if somebody else removed it.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_is_written_whole_and_looking_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        let destination = Destination::new(&path).unwrap();
        assert!(names(directory.path()).is_empty());
        destination.write(b"first", &mut io::sink()).unwrap();
        Destination::new(&path).unwrap().write(b"second", &mut io::sink()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(directory.path()), ["report.html"]);
    }

    #[test]
    fn what_cannot_be_written_is_said_in_one_sentence_before_the_watch() {
        let directory = tempfile::tempdir().unwrap();
        for (path, reason) in [("none/report.html", "No such file or directory"), ("", "is a directory")] {
            let path = directory.path().join(path);
            let error = Destination::new(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot write {}: ", path.display())), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_full_disk_is_said_and_a_device_is_never_replaced() {
        let destination = Destination::new(Path::new("/dev/full")).unwrap();
        let error = destination.write(b"page", &mut io::sink()).unwrap_err().to_string();
        assert!(error.starts_with("cannot write /dev/full: No space left on device"), "{error}");
        assert!(!fs::metadata("/dev/full").unwrap().is_file());
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_half_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        let destination = Destination::new(&path).unwrap();
        // What stands in the place cannot be replaced by a file.
        fs::create_dir(&path).unwrap();
        assert!(destination.write(b"page", &mut io::sink()).is_err());
        assert_eq!(names(directory.path()), ["report.html"]);
        assert!(path.is_dir());
    }

    #[test]
    fn the_file_behind_a_link_is_replaced_and_the_link_stays() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        Destination::new(&link).unwrap().write(b"new", &mut io::sink()).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
