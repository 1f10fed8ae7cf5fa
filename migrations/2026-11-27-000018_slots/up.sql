-- The slot of every row about a user: which part of a divided database it is in. It follows from the user's bucket, which
-- a session id contains. One Postgres has one slot, 0.
--
-- The slot is the last column of each key: a row is still found without it, and a divided database routes by it.
-- The previous release goes on beside this one: it names no slot, and the default is the only one there is.
--
-- Each table has a migration of its own: a transaction that locks several of them could deadlock with the clients'.

-- The slots that there are: 0 alone, or 1 and up in a divided database. A row of each leads a statement to its node.
CREATE TABLE slots (
    slot smallint NOT NULL,
    CONSTRAINT slots_pkey PRIMARY KEY (slot),
    CONSTRAINT slots_slot_check CHECK (slot BETWEEN 0 AND 4096)
);
INSERT INTO slots VALUES (0);

