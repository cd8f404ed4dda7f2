//! A run's records in SQLite.
//!
//! What is particular to SQLite is how a database is opened and checked; the queries are diesel's, the tables plain
//! SQL. A store in PostgreSQL is another type of connection.

use std::{
    path::{MAIN_SEPARATOR, Path, PathBuf},
    sync::Arc,
};

use diesel::{connection::SimpleConnection, prelude::*, result::Error as Reason, sql_types::Text};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use talion_core::{Error, Result};

use super::{
    Kept, RunStore, fault,
    header::{self, Cast, FORMAT, Sealed},
    tables::{ChunkRow, OutcomeRow, alarms, chunks, contenders, experiments, long, outcomes, run},
};
use crate::{Outcome, RunHeader};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// For all connections: readers wait while a writer does what cannot be shared, which takes a moment. Has to come
/// first.
const PATIENCE: &str = "PRAGMA busy_timeout = 20000";

/// For writers: readers read on meanwhile, and what is committed outlives a power cut.
const WRITING: [&str; 3] =
    ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON"];

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Making a new database.
    Create,
    /// Reading and writing.
    Write,
    /// Reading; the file stays as it is.
    Read,
}

/// A run in a SQLite file.
pub(super) struct SqliteStore {
    connection: SqliteConnection,
    path: PathBuf,
    cast: Arc<Cast>,
}

impl SqliteStore {
    /// Makes the database of a run that has nothing but its header, at `path`, and closes it.
    pub(super) fn create(path: &Path, sealed: &Sealed, cast: &Cast) -> Result<()> {
        let mut connection = connect(path, Access::Create)?;
        migrate(&mut connection, path)?;
        let written = write(&mut connection, |connection| {
            diesel::insert_into(run::table)
                .values((
                    run::number.eq(1_i64),
                    run::format.eq(FORMAT),
                    run::header.eq(&sealed.json),
                    run::sha256.eq(&sealed.sha256),
                ))
                .execute(connection)?;
            for (number, (name, _)) in (0_i64..).zip(&cast.experiments) {
                diesel::insert_into(experiments::table)
                    .values((experiments::number.eq(number), experiments::name.eq(name)))
                    .execute(connection)?;
            }
            for (number, name) in (0_i64..).zip(&cast.contenders) {
                diesel::insert_into(contenders::table)
                    .values((contenders::number.eq(number), contenders::name.eq(name)))
                    .execute(connection)?;
            }
            Ok(())
        });
        written.map_err(problem(path))
    }

    /// Opens the database at `path`. `whole` also checks that every page is what SQLite expects, which reads the file
    /// once.
    pub(super) fn open(path: &Path, access: Access, whole: bool) -> Result<(Self, RunHeader, Arc<Cast>)> {
        let mut connection = connect(path, access)?;
        if whole {
            check_pages(&mut connection, path)?;
        }
        if access == Access::Write && format(&mut connection, path)? < FORMAT {
            migrate(&mut connection, path)?;
        }
        header::check_format(path, format(&mut connection, path)?)?;
        let (json, sha256) = run::table
            .select((run::header, run::sha256))
            .first::<(String, String)>(&mut connection)
            .map_err(problem(path))?;
        let header = header::unseal(path, &Sealed { json, sha256 })?;
        let cast = Arc::new(Cast::of(&header.config)?);
        Ok((Self { connection, path: path.to_owned(), cast: Arc::clone(&cast) }, header, cast))
    }

    fn kept(&self, rows: Vec<ChunkRow>) -> Result<Vec<Kept>> {
        rows.into_iter().map(|row| row.kept(&self.path, &self.cast)).collect()
    }
}

impl RunStore for SqliteStore {
    fn chunks(&mut self, experiment: usize) -> Result<Vec<Kept>> {
        let number = long("an experiment's number", experiment)?;
        let rows = chunks_of(&mut self.connection, number).map_err(problem(&self.path))?;
        self.kept(rows)
    }

    fn read(&mut self, experiment: usize) -> Result<(Vec<Kept>, Vec<Outcome>)> {
        let number = long("an experiment's number", experiment)?;
        let both = self.connection.transaction(|connection| -> QueryResult<_> {
            Ok((chunks_of(connection, number)?, outcomes_of(connection, number)?))
        });
        let (chunks, outcomes) = both.map_err(problem(&self.path))?;
        let outcomes = outcomes.into_iter().map(|row| row.outcome(&self.path, &self.cast));
        Ok((self.kept(chunks)?, outcomes.collect::<Result<_>>()?))
    }

    fn add(&mut self, experiment: usize, kept: &Kept, outcomes: &[Outcome]) -> Result<()> {
        let chunk = ChunkRow::of(experiment, kept)?;
        let rows = outcomes
            .iter()
            .map(|outcome| OutcomeRow::of(&chunk, outcome, &self.cast))
            .collect::<Result<Vec<_>>>()?;
        let written = write(&mut self.connection, |connection| {
            diesel::insert_into(chunks::table).values(&chunk).execute(connection)?;
            // one by one: a statement with all of them would have more values than SQLite takes
            for row in &rows {
                diesel::insert_into(outcomes::table).values(row).execute(connection)?;
            }
            Ok(())
        });
        written.map_err(problem(&self.path))
    }

    fn forget(&mut self, experiment: usize, first: usize) -> Result<()> {
        let number = long("an experiment's number", experiment)?;
        let first = long("a chunk's first sample", first)?;
        let written = write(&mut self.connection, |connection| {
            let own = outcomes::experiment.eq(number).and(outcomes::chunk.eq(first));
            diesel::delete(outcomes::table.filter(own)).execute(connection)?;
            let own = chunks::experiment.eq(number).and(chunks::first.eq(first));
            diesel::delete(chunks::table.filter(own)).execute(connection)?;
            Ok(())
        });
        written.map_err(problem(&self.path))
    }

    fn alarms(&mut self) -> Result<Vec<String>> {
        alarms_of(&mut self.connection).map_err(problem(&self.path))
    }

    fn add_alarms(&mut self, alarms: &[String]) -> Result<()> {
        let written = write(&mut self.connection, |connection| {
            let mut there = alarms_of(connection)?;
            for words in alarms {
                if there.contains(words) {
                    continue;
                }
                let number = i64::try_from(there.len()).map_err(Reason::IntegerConversion)?;
                diesel::insert_into(alarms::table)
                    .values((alarms::number.eq(number), alarms::words.eq(words)))
                    .execute(connection)?;
                there.push(words.clone());
            }
            Ok(())
        });
        written.map_err(problem(&self.path))
    }
}

fn chunks_of(connection: &mut SqliteConnection, experiment: i64) -> QueryResult<Vec<ChunkRow>> {
    chunks::table
        .filter(chunks::experiment.eq(experiment))
        .order(chunks::first.asc())
        .select(ChunkRow::as_select())
        .load(connection)
}

fn outcomes_of(connection: &mut SqliteConnection, experiment: i64) -> QueryResult<Vec<OutcomeRow>> {
    outcomes::table
        .filter(outcomes::experiment.eq(experiment))
        .order((outcomes::contender.asc(), outcomes::sample.asc()))
        .select(OutcomeRow::as_select())
        .load(connection)
}

fn alarms_of(connection: &mut SqliteConnection) -> QueryResult<Vec<String>> {
    alarms::table.order(alarms::number.asc()).select(alarms::words).load(connection)
}

/// All of `work`, or nothing. Where SQLite itself has ended the transaction, as it does when the disk is full, diesel's
/// attempt to end it fails and its error hides the cause; so the cause is kept aside.
fn write(
    connection: &mut SqliteConnection,
    work: impl FnOnce(&mut SqliteConnection) -> QueryResult<()>,
) -> QueryResult<()> {
    let mut cause = None;
    let done = connection.immediate_transaction(|connection| {
        work(connection).map_err(|error| {
            cause = Some(error);
            Reason::RollbackTransaction
        })
    });
    done.map_err(|error| cause.unwrap_or(error))
}

fn connect(path: &Path, access: Access) -> Result<SqliteConnection> {
    let address = address(path, access)?;
    let mut connection =
        SqliteConnection::establish(&address).map_err(|error| fault::database(path, &error.to_string()))?;
    connection.batch_execute(PATIENCE).map_err(problem(path))?;
    let settings: &[&str] = if access == Access::Read { &[] } else { &WRITING };
    for setting in settings {
        connection.batch_execute(setting).map_err(problem(path))?;
    }
    Ok(connection)
}

/// The path as a URI, for only a URI can say what the file is opened for. Bytes that mean something there are escaped.
fn address(path: &Path, access: Access) -> Result<String> {
    let path = std::path::absolute(path).map_err(Error::io(path))?;
    let mut address = String::from("file://");
    for &byte in path.as_os_str().as_encoded_bytes() {
        let letter = char::from(byte);
        let root = address.len() == "file://".len();
        match byte {
            _ if letter == MAIN_SEPARATOR => address.push('/'),
            // a drive's letter
            b'A'..=b'Z' | b'a'..=b'z' if root => address.extend(['/', letter]),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => address.push(letter),
            _ => address.push_str(&format!("%{byte:02X}")),
        }
    }
    address.push_str(match access {
        Access::Create => "?mode=rwc",
        Access::Write => "?mode=rw",
        Access::Read => "?mode=ro",
    });
    Ok(address)
}

fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    let done = connection.run_pending_migrations(MIGRATIONS).map(drop);
    done.map_err(|error| fault::database(path, &error.to_string()))
}

/// What `PRAGMA integrity_check` says.
#[derive(QueryableByName)]
struct Finding {
    #[diesel(sql_type = Text)]
    integrity_check: String,
}

fn check_pages(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    let findings: Vec<Finding> =
        diesel::sql_query("PRAGMA integrity_check(1)").load(connection).map_err(problem(path))?;
    match findings.first() {
        Some(finding) if finding.integrity_check == "ok" => Ok(()),
        Some(finding) => Err(fault::damaged(path, &finding.integrity_check)),
        None => Err(fault::damaged(path, "it cannot be checked")),
    }
}

/// The format of the run; a file that SQLite reads but that holds no run has none.
fn format(connection: &mut SqliteConnection, path: &Path) -> Result<i64> {
    let format = run::table.select(run::format).first::<i64>(connection).optional().map_err(problem(path))?;
    format.ok_or_else(|| fault::damaged(path, "it has no header"))
}

fn problem(path: &Path) -> impl FnOnce(Reason) -> Error {
    move |reason| fault::database(path, &reason.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::{Environment, Player, RunConfig};

    fn header() -> RunHeader {
        let player = Player {
            name: "base".into(),
            description: String::new(),
            sha256: String::new(),
            defended: false,
        };
        RunHeader {
            config: RunConfig {
                protocol: "test".into(),
                data: "test".into(),
                data_sha256: String::new(),
                class_names: vec!["a".into(), "b".into()],
                budget: talion_core::Budget::linf_levels(8.0).unwrap(),
                samples: 4,
                seed: 0,
                contenders: vec![player],
                surrogates: Vec::new(),
                experiments: Vec::new(),
            },
            environment: Environment {
                talion: String::new(),
                libtorch: String::new(),
                device: "cpu".into(),
                processor: String::new(),
                processors: 1,
                threads: 1,
                system: String::new(),
                command: Vec::new(),
                begun: 0,
            },
        }
    }

    fn made(path: &Path) -> SqliteStore {
        let header = header();
        let cast = Cast::of(&header.config).unwrap();
        SqliteStore::create(path, &header::seal(&header).unwrap(), &cast).unwrap();
        SqliteStore::open(path, Access::Write, true).unwrap().0
    }

    #[test]
    fn names_with_signs_that_mean_something_in_a_uri_are_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a b", "100%25", "x?mode=ro", "y#z", "ä'\"&"] {
            let path = folder.path().join(name);
            drop(made(&path));
            assert!(path.is_file(), "{name}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 5);
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_file_and_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.sqlite");
        let mut store = made(&path);
        store.add_alarms(&["first".to_owned()]).unwrap();
        store.connection.batch_execute("PRAGMA max_page_count = 1").unwrap();
        let many: Vec<String> = (0..2000).map(|number| format!("{number} {}", "x".repeat(500))).collect();
        let error = store.add_alarms(&many).unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull),
            "{error}"
        );
        assert!(error.to_string().contains("run.sqlite"), "{error}");
        assert_eq!(store.alarms().unwrap(), ["first"]);
        store.connection.batch_execute("PRAGMA max_page_count = 1000000").unwrap();
        store.add_alarms(&many).unwrap();
        assert_eq!(store.alarms().unwrap().len(), 2001);
    }

    #[test]
    fn a_reader_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.sqlite");
        drop(made(&path));
        let (mut store, _, _) = SqliteStore::open(&path, Access::Read, true).unwrap();
        assert!(store.add_alarms(&["x".to_owned()]).is_err());
        assert!(store.alarms().unwrap().is_empty());
    }
}
