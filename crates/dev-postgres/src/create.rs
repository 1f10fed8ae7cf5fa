use std::fs;
use std::fs::File;

use crate::binaries::Binaries;
use crate::error::Error;
use crate::options::Durability;
use crate::options::ROLE;
use crate::place;
use crate::place::Place;

/// Creates the data where they do not look like a cluster's until they are one: a crash in between costs nothing.
pub(crate) async fn cluster(place: &Place, binaries: &Binaries, durability: Durability) -> Result<(), Error> {
    const UNFINISHED: &str = "data.unfinished.";
    let entries = fs::read_dir(&place.home).map_err(Error::file("read", &place.home))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
        // The initdb of an owner that was just killed may still write there; then it stays until the next time.
        let _ = fs::remove_dir_all(entry.path());
    }

    let unfinished = place.home.join(format!("{UNFINISHED}{}", std::process::id()));
    let mut initdb = place.command(&binaries.program("initdb"));
    initdb.arg("--pgdata").arg(&unfinished).args(["--username", ROLE]);
    initdb.args(["--encoding", "UTF8", "--locale", "C", "--auth-local", "trust", "--auth-host", "reject"]);
    if durability == Durability::Disposable {
        initdb.arg("--no-sync");
    }
    let output = place::run(initdb).await?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Failed { program: "initdb", status: output.status, output: stderr });
    }
    fs::rename(&unfinished, place.data()).map_err(Error::file("rename", &unfinished))?;
    let home = File::open(&place.home).and_then(|home| home.sync_all());
    home.map_err(Error::file("sync", &place.home))
}
