//! The file systems that a state lies on. Within one of them things can be renamed, which a swap is made of.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Step;
use crate::error::{Error, Result};
use crate::state::places::{Place, Places, join};
use crate::state::private::{FOLDER, create_private_dir};

/// Holds everything of a swap under way, in the private folder.
pub(super) const SWAP: &str = "rollback";
/// Where what could not be saved elsewhere stays after it was replaced, in the private folder.
pub const SET_ASIDE: &str = "set-aside";
/// The same two at the top of another volume, for instance a workspace outside the state directory: nothing can be renamed
/// across file systems.
const SWAP_IN_VOLUME: &str = ".b2-backup-rollback";
/// What [`SET_ASIDE`] is called at the top of another volume.
pub const SET_ASIDE_IN_VOLUME: &str = ".b2-backup-set-aside";

/// A part of the state within which things can be renamed: a place, or a file system that is mounted in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) place: Place,
    is_mount: bool,
}

impl Volume {
    /// The path below the volume's directory of what is called `name`, if it lies in it. A mount point does not lie in what
    /// is mounted there.
    fn below<'n>(&'n self, name: &'n str) -> Option<&'n str> {
        let below = self.place.below(name).filter(|below| !(self.is_mount && below.is_empty()))?;
        Some(if below.is_empty() { "." } else { below })
    }

    /// What holds everything of a swap, below the volume's directory.
    pub(super) fn swap_folder(&self) -> String {
        if self.place.name.is_empty() { format!("{FOLDER}/{SWAP}") } else { SWAP_IN_VOLUME.into() }
    }

    /// The same, as a path.
    pub(super) fn folder(&self) -> PathBuf {
        self.place.directory.join(self.swap_folder())
    }

    /// What holds what is set aside.
    pub(super) fn set_aside(&self) -> String {
        if self.place.name.is_empty() { format!("{FOLDER}/{SET_ASIDE}") } else { SET_ASIDE_IN_VOLUME.into() }
    }
}

/// All volumes of a state, that of the state directory first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volumes(pub(super) Vec<Volume>);

impl Volumes {
    pub(super) fn of(places: &Places) -> Self {
        let volumes = places.all().iter().flat_map(|place| {
            let mounts = if place.file.is_none() { mounts_below(&place.directory) } else { Vec::new() };
            let mounted = mounts.into_iter().map(|mount| Volume {
                place: Place { name: join(&place.name, &mount), directory: place.directory.join(mount), file: None },
                is_mount: true,
            });
            std::iter::once(Volume { place: place.clone(), is_mount: false }).chain(mounted).collect::<Vec<_>>()
        });
        Self(volumes.collect())
    }

    /// The innermost volume that holds `name`, and the path below its directory.
    pub(super) fn find<'n>(&'n self, name: &'n str) -> (usize, &'n str) {
        let holding = self.0.iter().enumerate().filter_map(|(number, volume)| Some((number, volume.below(name)?)));
        holding.max_by_key(|(number, _)| self.0[*number].place.name.len()).unwrap_or((0, name))
    }

    pub(super) fn locate(&self, name: &str) -> PathBuf {
        let (number, below) = self.find(name);
        self.0[number].place.directory.join(below)
    }

    /// All folders that hold something of a swap.
    pub(super) fn swap_folders(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().map(Volume::folder)
    }

    /// Those that something happens in.
    pub(super) fn used_by<'s>(&self, steps: impl IntoIterator<Item = &'s Step>) -> BTreeSet<usize> {
        steps.into_iter().map(|step| self.find(step.path()).0).collect()
    }

    /// Those that something is moved in.
    fn changed_by(&self, steps: &[Step]) -> impl Iterator<Item = &Volume> {
        let moving = steps.iter().filter(|step| !matches!(step, Step::SetAttributes { .. }));
        self.used_by(moving).into_iter().map(|number| &self.0[number])
    }

    /// Makes the swap folder of each that something is moved in, by which it is known again.
    ///
    /// # Errors
    /// `IO`.
    pub(super) fn make_ready(&self, steps: &[Step]) -> Result<()> {
        self.changed_by(steps).try_for_each(|volume| {
            let directory = &volume.place.directory;
            std::fs::create_dir_all(directory).map_err(|error| Error::io("create the directory", directory, error))?;
            create_private_dir(&volume.folder())
        })
    }

    /// The swap folder of one that something is moved in and that is not there now, as after a start without its disk.
    pub(super) fn without_swap_folder(&self, steps: &[Step]) -> Option<PathBuf> {
        self.changed_by(steps).map(Volume::folder).find(|folder| !folder.is_dir())
    }

    /// Follows a state directory that was moved as a whole.
    pub(super) fn move_to(&mut self, state_dir: &Path) {
        let before = self.0[0].place.directory.clone();
        for Volume { place, .. } in &mut self.0 {
            if let Ok(below) = place.directory.strip_prefix(&before) {
                place.directory = state_dir.join(below);
            }
        }
    }

    /// Whether all names are those of something below, and all directories can only mean one. This program wrote them to its
    /// private folder, but the disk is not trusted with where files go.
    pub(super) fn make_sense(&self) -> bool {
        let is_sound = |volume: &Volume| {
            let Place { name, directory, file } = &volume.place;
            let is_name = |name: &String| stays_inside(name);
            directory.is_absolute() && (name.is_empty() || is_name(name)) && file.as_ref().is_none_or(is_name)
        };
        self.0.first().is_some_and(|first| first.place.name.is_empty()) && self.0.iter().all(is_sound)
    }
}

/// Whether a name in a journal stays below where it begins.
pub(super) fn stays_inside(path: &str) -> bool {
    path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

/// Where other file systems are mounted in a directory, relative to it. A single file may be mounted too, but nothing is
/// renamed within that. Linux only: elsewhere such a rollback fails, and is
/// taken back.
fn mounts_below(directory: &Path) -> Vec<String> {
    let (Ok(directory), Ok(mounts)) = (directory.canonicalize(), std::fs::read_to_string("/proc/self/mountinfo"))
    else {
        return Vec::new();
    };
    // The fifth field is the mount point, with spaces and the like as octal escapes (proc_pid_mountinfo(5)).
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter_map(unescape);
    let mut below: Vec<String> = points
        .filter_map(|point| Some(Path::new(&point).strip_prefix(&directory).ok()?.to_str()?.to_owned()))
        .collect();
    below.retain(|mount| !mount.is_empty() && directory.join(mount).is_dir());
    below.sort();
    below.dedup();
    below
}

fn unescape(field: &str) -> Option<String> {
    let mut parts = field.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..3)?, 8).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[3..]);
    }
    String::from_utf8(bytes).ok()
}
