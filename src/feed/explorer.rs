//! Searches every interleaving of a small model for one in which the feed loses a revocation. The readers' rules are the
//! server's own ([`Position`]); the database, its writers and its faults are modelled here, as `store::writers` and the
//! statements of `store::feed` treat them.
//!
//! Each rule can be broken by a switch. A test expects a loss for every broken rule, so that no rule is there in vain, and the
//! search is known to find such losses.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::time::Duration;

use uuid::Uuid;

use super::position::Beat;
use super::position::Position;
use crate::store::Extent;
use crate::store::FeedOrigin;
use crate::store::FeedPresent;
use crate::store::FeedReading;
use crate::store::FeedWriters;
use crate::store::PgSnapshot;
use crate::store::WriterEntry;
use crate::store::WriterId;
use sessiond_core::clock::Timestamp;

/// A rule that a search breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// A connection whose commit is in doubt goes on, with the number in doubt.
    DoubtfulConnectionIsDropped,
    /// A transaction does not lock its writer, so the writer may be closed meanwhile.
    NumberIsUsedUnderALock,
    /// The last number of a writer is read before its lock is taken.
    LastNumberIsReadUnderTheLock,
    /// A transaction goes on with a closed writer.
    ClosedWriterIsRefused,
    /// A writer goes on although the database lacks its last entry.
    WriterGoesOnWhereItsLastEntryIs,
    /// A closed writer is deleted although its entries still matter.
    WriterIsKeptWhileItsEntriesMatter,
    /// A reader that starts reads the backlog before the position.
    PositionIsReadBeforeTheBacklog,
    /// A reader continues behind the newest entry, whatever it has read.
    PositionIsWhatWasRead,
    /// A part of what is new shows a beat.
    PartShowsNoBeat,
    /// A reading is as good without a beat.
    FreshnessNeedsABeat,
    /// A reader continues with the readings of another server.
    OriginIsChecked,
    /// A reader does not check that the database still has what it has shown.
    NewestEntriesAreChecked,
    /// Nothing is sent again of a writer that a cursor does not name.
    UnnamedWriterIsSentAgain,
    /// A cursor is accepted that is ahead of the reader.
    CursorFromTheFutureIsRefused,
}

/// A number of a writer.
type Place = (u64, u32);

/// What a server has committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Database {
    /// The writers; a closed one has a last number.
    writers: BTreeMap<u64, Option<u32>>,
    /// The entries, each with the transaction that wrote it.
    entries: BTreeMap<Place, u8>,
    /// The last transaction id that was assigned to a beat.
    xid: u64,
}

impl Database {
    fn newest(&self, writer: u64) -> u32 {
        self.entries.range((writer, 0)..=(writer, u32::MAX)).next_back().map_or(0, |((_, seq), _)| *seq)
    }
}

/// A transaction in progress, which revokes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Work {
    place: Place,
    id: u8,
    /// It opens the writer too.
    opens: bool,
}

/// A database connection of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Connection {
    /// Its writer, and the last number.
    writer: Option<Place>,
    work: Option<Work>,
}

/// A reader, which publishes what it reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Reader {
    /// A start that has read one half: the position, or, by a broken rule, the backlog.
    starting: Option<Start>,
    position: Option<Position>,
    known: BTreeMap<Place, u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Start {
    Position(Position),
    Backlog(BTreeMap<Place, u8>),
}

/// A subscriber that was sent everything up to its cursor, and left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subscriber {
    origin: FeedOrigin,
    numbers: BTreeMap<WriterId, u32>,
    known: BTreeMap<Place, u8>,
    /// The cursor covers everything that is known.
    is_whole: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Model {
    timeline: u32,
    primary: Database,
    /// A standby that has not replayed everything, or a backup.
    copy: Database,
    /// The primary before the failover, which still answers.
    deposed: Option<Database>,
    connections: [Connection; 2],
    /// Transactions whose connection was lost; they may still commit.
    lost: BTreeSet<Work>,
    /// A writer that is being closed, and the number that was read.
    closing: Option<(u64, Option<u32>)>,
    reader: Reader,
    subscriber: Option<Subscriber>,
    /// The last confirmed beat, and what was committed before it.
    beat: Option<(u32, u64, BTreeMap<Place, u8>)>,
    /// The entries that no longer matter.
    expired: BTreeSet<Place>,
    /// What was ever committed under each number.
    used: BTreeMap<Place, u8>,
    writers_left: u64,
    works_left: u8,
    faults_left: u8,
}

/// How large a model is.
#[derive(Clone, Copy)]
struct Size {
    writers: u64,
    works: u8,
    faults: u8,
    connections: usize,
    /// Writers are closed and deleted, and entries expire.
    sweeps: bool,
    /// A subscriber leaves and resumes.
    resumes: bool,
}

const HISTORY: Uuid = Uuid::from_u128(1);

/// Entries matter until then.
const EXPIRY: Duration = Duration::from_secs(600);

fn origin(timeline: u32) -> FeedOrigin {
    FeedOrigin { history: HISTORY, timeline }
}

impl Model {
    fn new(size: Size) -> Self {
        Self {
            timeline: 1,
            primary: Database::default(),
            copy: Database::default(),
            deposed: None,
            connections: <[Connection; 2]>::default(),
            lost: BTreeSet::new(),
            closing: None,
            reader: Reader::default(),
            subscriber: None,
            beat: None,
            expired: BTreeSet::new(),
            used: BTreeMap::new(),
            writers_left: size.writers,
            works_left: size.works,
            faults_left: size.faults,
        }
    }

    fn entry(&self, (writer, seq): Place) -> WriterEntry {
        let seconds = if self.expired.contains(&(writer, seq)) || seq == 0 { 0 } else { EXPIRY.as_secs() };
        let access_expires_at = Timestamp::from_seconds(i64::try_from(seconds).expect("small"));
        WriterEntry { writer: WriterId::from_number(writer), seq, access_expires_at }
    }

    fn present(&self, database: &Database, timeline: u32) -> FeedPresent {
        let snapshot = PgSnapshot { xmin: database.xid + 1, xmax: database.xid + 1, under_way: vec![] };
        FeedPresent::of_one(origin(timeline), snapshot, Timestamp::from_seconds(1))
    }

    /// As the statement `FeedWritersRead`.
    fn found(&self, database: &Database, timeline: u32) -> FeedWriters {
        let newest = |(writer, last): (&u64, &Option<u32>)| {
            self.entry((*writer, last.unwrap_or_else(|| database.newest(*writer))))
        };
        let newest = database.writers.iter().map(newest).collect();
        FeedWriters { present: self.present(database, timeline), newest }
    }

    /// As the statement `FeedNext`.
    fn reading(&self, database: &Database, timeline: u32, position: &Position, rows_max: usize) -> FeedReading {
        let is_new = |(writer, seq): &&Place| {
            let known = position.number(WriterId::from_number(*writer)).unwrap_or(0);
            let may_have_more = database.writers.get(writer).is_some_and(|last| last.is_none_or(|last| last > known));
            may_have_more && *seq > known
        };
        let entries: Vec<WriterEntry> =
            database.entries.keys().filter(is_new).take(rows_max).map(|place| self.entry(*place)).collect();
        let extent = if entries.len() < rows_max { Extent::Whole } else { Extent::Part };
        FeedReading { present: self.present(database, timeline), revocations: vec![], entries, extent }
    }

    fn mattering(&self, entries: &BTreeMap<Place, u8>) -> BTreeSet<(Place, u8)> {
        let mattering = entries.iter().filter(|(place, _)| !self.expired.contains(place));
        mattering.map(|(place, id)| (*place, *id)).collect()
    }

    fn is_locked(&self, writer: u64) -> bool {
        let works = self.connections.iter().filter_map(|connection| connection.work.as_ref()).chain(&self.lost);
        works.into_iter().any(|work| work.place.0 == writer)
    }

    /// Makes a transaction's entry visible.
    fn commit(&mut self, work: Work) -> Result<(), String> {
        if work.opens {
            self.primary.writers.insert(work.place.0, None);
        }
        if self.used.insert(work.place, work.id).is_some() {
            return Err(format!("the number {:?} is used twice", work.place));
        }
        self.primary.entries.insert(work.place, work.id);
        Ok(())
    }

    /// What may happen next, and what becomes of the model. `Err` is a loss.
    fn next(&self, broken: Option<Broken>, size: Size) -> Vec<(String, Result<Self, String>)> {
        let holds = |rule| broken != Some(rule);
        let mut next = vec![];
        for at in 0..size.connections {
            let connection = self.connections[at];
            match connection.work {
                None if self.works_left > 0 => {
                    let (place, opens) = match connection.writer {
                        Some((writer, last)) => ((writer, last + 1), false),
                        None if self.writers_left > 0 => ((self.writers_left, 1), true),
                        None => continue,
                    };
                    let (writer, last) = (place.0, place.1 - 1);
                    let is_open = match self.primary.writers.get(&writer) {
                        _ if opens => true,
                        Some(None) => true,
                        Some(Some(_)) | None => !holds(Broken::ClosedWriterIsRefused),
                    };
                    let has_last = last == 0 || self.primary.entries.contains_key(&(writer, last));
                    let mut then = self.clone();
                    if !is_open || (!has_last && holds(Broken::WriterGoesOnWhereItsLastEntryIs)) {
                        // The statement fails, and the connection is closed.
                        then.connections[at] = Connection::default();
                        next.push((format!("{at} is refused {place:?}"), Ok(then)));
                        continue;
                    }
                    if holds(Broken::NumberIsUsedUnderALock) && self.closing == Some((writer, None)) {
                        continue; // It waits.
                    }
                    then.works_left -= 1;
                    then.writers_left -= u64::from(opens);
                    then.connections[at].work = Some(Work { place, id: self.works_left, opens });
                    next.push((format!("{at} begins {place:?}"), Ok(then)));
                }
                None => {}
                Some(work) => {
                    let mut then = self.clone();
                    then.connections[at] = Connection { writer: Some(work.place), work: None };
                    let committed = then.commit(work);
                    next.push((format!("{at} commits {:?}", work.place), committed.map(|()| then)));
                    let mut then = self.clone();
                    then.connections[at] = Connection::default();
                    next.push((format!("{at} rolls back {:?}", work.place), Ok(then.clone())));
                    then.lost.insert(work);
                    if !holds(Broken::DoubtfulConnectionIsDropped) {
                        then.connections[at].writer = Some((work.place.0, work.place.1 - 1));
                    }
                    next.push((format!("{at} is lost with {:?}", work.place), Ok(then)));
                }
            }
        }
        for work in &self.lost {
            let mut then = self.clone();
            then.lost.remove(work);
            next.push((format!("the lost {:?} is rolled back", work.place), Ok(then.clone())));
            let committed = then.commit(*work);
            next.push((format!("the lost {:?} commits", work.place), committed.map(|()| then)));
        }
        if size.sweeps {
            self.sweep(&holds, &mut next);
        }
        self.read(&holds, size, &mut next);
        self.fail(&holds, &mut next);
        next
    }

    fn sweep(&self, holds: &impl Fn(Broken) -> bool, next: &mut Vec<(String, Result<Self, String>)>) {
        let mut add = |what: String, then: Self| next.push((what, Ok(then)));
        match self.closing {
            None => {
                for (writer, _) in self.primary.writers.iter().filter(|(_, last)| last.is_none()) {
                    let mut then = self.clone();
                    if !holds(Broken::LastNumberIsReadUnderTheLock) {
                        then.closing = Some((*writer, Some(self.primary.newest(*writer))));
                    } else if !self.is_locked(*writer) || !holds(Broken::NumberIsUsedUnderALock) {
                        then.closing = Some((*writer, None));
                    } else {
                        continue;
                    }
                    add(format!("the sweep takes {writer}"), then);
                }
            }
            Some((writer, read)) if read.is_none() || !self.is_locked(writer) => {
                let mut then = self.clone();
                then.closing = None;
                then.primary.writers.insert(writer, Some(read.unwrap_or_else(|| self.primary.newest(writer))));
                add(format!("the sweep closes {writer}"), then);
            }
            Some(_) => {}
        }
        for (writer, _) in self.primary.writers.iter().filter(|(_, last)| last.is_some()) {
            let mut entries = self.primary.entries.keys().filter(|place| place.0 == *writer);
            if entries.all(|place| self.expired.contains(place)) || !holds(Broken::WriterIsKeptWhileItsEntriesMatter) {
                let mut then = self.clone();
                then.primary.writers.remove(writer);
                add(format!("the sweep deletes {writer}"), then);
            }
        }
        if self.expired.is_empty() && !self.primary.entries.is_empty() {
            let mut then = self.clone();
            then.expired = self.primary.entries.keys().copied().collect();
            add("what was committed no longer matters".to_owned(), then);
        }
    }

    fn read(&self, holds: &impl Fn(Broken) -> bool, size: Size, next: &mut Vec<(String, Result<Self, String>)>) {
        let reader = &self.reader;
        let (database, timeline) = (&self.primary, self.timeline);
        let position = Position::new(&self.found(database, timeline));
        let mut then = self.clone();
        then.reader = Reader::default();
        match (&reader.starting, &reader.position) {
            (None, None) => {
                let start = match holds(Broken::PositionIsReadBeforeTheBacklog) {
                    true => Start::Position(position),
                    false => Start::Backlog(database.entries.clone()),
                };
                then.reader.starting = Some(start);
                next.push(("the reader begins to start".to_owned(), Ok(then)));
            }
            (Some(Start::Position(position)), _) => {
                then.reader.position = Some(position.clone());
                then.reader.known = database.entries.clone();
                next.push(("the reader starts".to_owned(), Ok(then)));
            }
            (Some(Start::Backlog(backlog)), _) => {
                then.reader.position = Some(position);
                then.reader.known = backlog.clone();
                next.push(("the reader starts".to_owned(), Ok(then)));
            }
            (None, Some(position)) => {
                // Another connection: the reader checks, and starts again if the database has gone back.
                let found = self.found(database, timeline);
                let continues = position.check(&found).is_ok() || !holds(Broken::NewestEntriesAreChecked);
                if continues {
                    then.reader = reader.clone();
                    if let Some(position) = then.reader.position.as_mut() {
                        position.forget_swept(&found);
                    }
                    // Its position does not cover what was committed while it read the backlog, until the next reading.
                    let mut covered = reader.known.clone();
                    covered.retain(|place, _| covers(&position.numbers(), *place));
                    let gone = self.mattering(&covered);
                    let gone = gone.difference(&self.mattering(&database.entries)).next().copied();
                    let outcome = match gone {
                        Some(gone) if holds(Broken::OriginIsChecked) => {
                            Err(format!("the reader does not forget {gone:?}"))
                        }
                        _ => Ok(then),
                    };
                    next.push(("the reader checks".to_owned(), outcome));
                } else {
                    next.push(("the reader finds that the database went back".to_owned(), Ok(then)));
                }
                for (server, timeline) in [(Some(database), timeline), (self.deposed.as_ref(), 1)] {
                    let Some(server) = server else { continue };
                    for rows_max in [usize::MAX, 1] {
                        let what = format!("the reader reads {rows_max} of timeline {timeline}");
                        let reading = self.reading(server, timeline, position, rows_max);
                        next.push((what, self.read_on(holds, position, server, reading)));
                    }
                }
                if self.subscriber.is_none() && size.resumes {
                    let mut then = self.clone();
                    let (numbers, known) = (position.numbers(), reader.known.clone());
                    let is_whole = known.keys().all(|place| covers(&numbers, *place));
                    let origin = position.origin();
                    then.subscriber = Some(Subscriber { origin, numbers: numbers.clone(), known, is_whole });
                    next.push(("a subscriber leaves".to_owned(), Ok(then.clone())));
                    for writer in numbers.keys() {
                        let mut then = then.clone();
                        let subscriber = then.subscriber.as_mut().expect("just now");
                        subscriber.numbers.remove(writer);
                        subscriber.is_whole = false;
                        next.push((format!("a subscriber leaves with a cursor without {writer:?}"), Ok(then)));
                    }
                }
            }
        }
        if self.beat.as_ref().is_none_or(|(timeline, ..)| *timeline != self.timeline) {
            let mut then = self.clone();
            then.primary.xid += 1;
            then.beat = Some((self.timeline, then.primary.xid, self.primary.entries.clone()));
            next.push(("a beat is confirmed".to_owned(), Ok(then)));
        }
    }

    /// The reader reads on. `Err`, if it counts as fresh and misses something, or retains something that is lost.
    fn read_on(
        &self,
        holds: &impl Fn(Broken) -> bool,
        position: &Position,
        database: &Database,
        mut reading: FeedReading,
    ) -> Result<Self, String> {
        let read: Vec<Place> = reading.entries.iter().map(|entry| (entry.writer.number(), entry.seq)).collect();
        if !holds(Broken::PartShowsNoBeat) {
            reading.extent = Extent::Whole;
        }
        let mut then = self.clone();
        let mut advanced = position.clone();
        if advanced.advance(&reading).is_err() {
            then.reader = Reader::default();
            return Ok(then);
        }
        if !holds(Broken::PositionIsWhatWasRead) && !read.is_empty() {
            advanced = Position::new(&self.found(database, position.origin().timeline));
            // Whole, so that only the position is wrong.
            let rest = FeedReading { entries: vec![], extent: reading.extent, ..reading.clone() };
            let _ = advanced.advance(&rest);
        }
        let of = |place: &Place| database.entries.get(place).map(|id| (*place, *id));
        then.reader.known.extend(read.iter().filter_map(of));
        then.reader.position = Some(advanced.clone());
        if let Some((at, xid, before)) = &self.beat {
            let beat = Beat::of_one(origin(*at), *xid);
            // What a failover or a restore has lost is not missed.
            let before = self.mattering(before).intersection(&self.mattering(&self.primary.entries)).copied().collect();
            let known = self.mattering(&then.reader.known);
            let is_fresh = advanced.shows(&beat) || !holds(Broken::FreshnessNeedsABeat);
            if let Some(missed) = BTreeSet::difference(&before, &known).next().filter(|_| is_fresh) {
                return Err(format!("the reader counts as fresh, and misses {missed:?}"));
            }
            let gone = known.difference(&self.mattering(&self.primary.entries)).next().copied();
            let follows = self.deposed.is_some() && *database == self.primary && advanced.shows(&beat);
            if let Some(gone) = gone.filter(|_| follows) {
                return Err(format!("the reader has followed the failover, and does not forget {gone:?}"));
            }
        }
        Ok(then)
    }

    fn fail(&self, holds: &impl Fn(Broken) -> bool, next: &mut Vec<(String, Result<Self, String>)>) {
        // Once: only the last time before the fault would count, and this may be any time.
        if self.copy == Database::default() && self.copy != self.primary && self.faults_left > 0 {
            let mut then = self.clone();
            then.copy = self.primary.clone();
            next.push(("the standby catches up".to_owned(), Ok(then)));
        }
        if self.faults_left == 0 {
            return;
        }
        let mut crashed = self.clone();
        crashed.faults_left -= 1;
        crashed.lost.clear();
        crashed.closing = None;
        for connection in &mut crashed.connections {
            // Beneath a pooler, an idle connection does not notice.
            *connection = Connection { writer: connection.writer.filter(|_| connection.work.is_none()), work: None };
        }
        next.push(("the primary crashes".to_owned(), Ok(crashed.clone())));
        let mut restored = crashed.clone();
        restored.primary = self.copy.clone();
        next.push(("the primary is restored".to_owned(), Ok(restored.clone())));
        if self.deposed.is_none() {
            restored.timeline += u32::from(holds(Broken::OriginIsChecked));
            restored.deposed = Some(self.primary.clone());
            next.push(("the standby takes over".to_owned(), Ok(restored)));
        }
    }

    /// Checks what a subscriber gets that resumes at this moment: at the reader, or at one that has just started.
    fn check_resume(&self, broken: Option<Broken>) -> Result<(), String> {
        let Some(subscriber) = &self.subscriber else { return Ok(()) };
        let young = Position::new(&self.found(&self.primary, self.timeline));
        let young = Some((&young, &self.primary.entries, subscriber.is_whole));
        // It may not have noticed yet that the database went back.
        let own = self.reader.position.as_ref().map(|position| (position, &self.reader.known, false));
        for (position, known, has_all) in [own, young].into_iter().flatten() {
            let is_behind =
                position.is_behind(&subscriber.numbers) && broken != Some(Broken::CursorFromTheFutureIsRefused);
            if subscriber.origin != position.origin() || is_behind {
                continue; // It gets a snapshot.
            }
            let is_sent = |(writer, seq): &Place| {
                let named = subscriber.numbers.get(&WriterId::from_number(*writer));
                let unnamed = if broken == Some(Broken::UnnamedWriterIsSentAgain) { u32::MAX } else { 0 };
                *seq > named.copied().unwrap_or(unnamed)
            };
            let sent = known.iter().filter(|(place, _)| is_sent(place)).map(|(place, id)| (*place, *id));
            let has: BTreeMap<Place, u8> = subscriber.known.clone().into_iter().chain(sent).collect();
            let (has, known) = (self.mattering(&has), self.mattering(known));
            if let Some(missed) = known.difference(&has).next() {
                return Err(format!("the subscriber resumes, and misses {missed:?}"));
            }
            if let Some(gone) = has.difference(&known).next().filter(|_| has_all) {
                return Err(format!("the subscriber resumes, and does not forget {gone:?}"));
            }
        }
        Ok(())
    }
}

/// Whether an entry is up to the numbers.
fn covers(numbers: &BTreeMap<WriterId, u32>, (writer, seq): Place) -> bool {
    numbers.get(&WriterId::from_number(writer)).is_some_and(|number| seq <= *number)
}

/// Searches breadth-first. Returns how many states there are, or the shortest way to a loss.
fn search(size: Size, broken: Option<Broken>) -> Result<usize, String> {
    let (one, other) = (RandomState::new(), RandomState::new());
    let hash = |model: &Model| (one.hash_one(model), other.hash_one(model));
    let first = Model::new(size);
    let mut seen = HashSet::from([hash(&first)]);
    // How each state was reached: the state before it, and what happened.
    let mut ways: Vec<(usize, String)> = vec![(0, "the beginning".to_owned())];
    let mut queue = VecDeque::from([(0, first)]);
    let way = |ways: &[(usize, String)], mut at: usize| {
        let mut steps = vec![];
        while at != 0 {
            steps.push(ways[at].1.clone());
            at = ways[at].0;
        }
        steps.reverse();
        steps.join("; ")
    };
    while let Some((at, model)) = queue.pop_front() {
        for (what, then) in model.next(broken, size) {
            let then = then.and_then(|then| then.check_resume(broken).map(|()| then));
            match then {
                Err(loss) => return Err(format!("{loss}: {}; {what}", way(&ways, at))),
                Ok(then) => {
                    if seen.insert(hash(&then)) {
                        ways.push((at, what));
                        queue.push_back((ways.len() - 1, then));
                    }
                }
            }
        }
    }
    Ok(seen.len())
}

/// Without faults of the server.
const CALM: Size = Size { writers: 2, works: 3, faults: 0, connections: 2, sweeps: true, resumes: true };

/// With a failover, a crash or a restore.
const FAULTY: Size = Size { faults: 1, connections: 1, ..CALM };

/// `FEED_WORKS=3` searches with more transactions, and everything at once: millions of states, and minutes in a debug build.
#[test]
fn nothing_is_lost_in_any_interleaving() {
    let more = std::env::var("FEED_WORKS").ok().and_then(|text| text.parse().ok());
    let few = |size| Size { works: 2, ..size };
    let searches = match more {
        Some(works) => vec![("calm", Size { works, ..CALM }), ("faulty", Size { works, ..FAULTY })],
        None => vec![
            ("two connections and the sweep", few(Size { resumes: false, ..CALM })),
            ("two connections and a subscriber", few(Size { sweeps: false, ..CALM })),
            ("a fault and the sweep", few(Size { resumes: false, ..FAULTY })),
            ("a fault and a subscriber", few(Size { sweeps: false, ..FAULTY })),
        ],
    };
    for (name, size) in searches {
        match search(size, None) {
            Ok(states) => println!("{name}: {states} states, nothing lost"),
            Err(loss) => panic!("{name}: {loss}"),
        }
    }
}

#[test]
fn each_broken_rule_loses_something() {
    use Broken::*;
    for (size, rule) in [
        (CALM, DoubtfulConnectionIsDropped),
        (CALM, NumberIsUsedUnderALock),
        (CALM, LastNumberIsReadUnderTheLock),
        (CALM, ClosedWriterIsRefused),
        (FAULTY, WriterGoesOnWhereItsLastEntryIs),
        (CALM, WriterIsKeptWhileItsEntriesMatter),
        (CALM, PositionIsReadBeforeTheBacklog),
        (CALM, PositionIsWhatWasRead),
        (CALM, PartShowsNoBeat),
        (FAULTY, FreshnessNeedsABeat),
        (FAULTY, OriginIsChecked),
        (FAULTY, NewestEntriesAreChecked),
        (CALM, UnnamedWriterIsSentAgain),
        (FAULTY, CursorFromTheFutureIsRefused),
    ] {
        match search(size, Some(rule)) {
            Ok(states) => panic!("without {rule:?} nothing is lost in {states} states"),
            Err(loss) => println!("without {rule:?}: {loss}"),
        }
    }
}
