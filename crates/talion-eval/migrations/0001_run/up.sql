-- Types that SQLite and PostgreSQL both know. Places of experiments and contenders in the run's configuration are their
-- numbers; the tables that name them are for people and for foreign keys.

CREATE TABLE run (
    number BIGINT NOT NULL PRIMARY KEY CHECK (number = 1),
    -- says what everything here means: a migration that changes that raises it
    format BIGINT NOT NULL,
    header TEXT NOT NULL,
    sha256 TEXT NOT NULL
);

CREATE TABLE experiments (
    number BIGINT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE contenders (
    number BIGINT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE chunks (
    experiment BIGINT NOT NULL REFERENCES experiments (number),
    first BIGINT NOT NULL CHECK (first >= 0),
    samples BIGINT NOT NULL CHECK (samples > 0),
    file TEXT NOT NULL,
    file_sha256 TEXT NOT NULL,
    forward BIGINT NOT NULL,
    backward BIGINT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    adjustments TEXT NOT NULL,
    outcomes_sha256 TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (experiment, first)
);

CREATE TABLE outcomes (
    experiment BIGINT NOT NULL,
    contender BIGINT NOT NULL REFERENCES contenders (number),
    sample BIGINT NOT NULL,
    chunk BIGINT NOT NULL,
    id BIGINT NOT NULL,
    label BIGINT NOT NULL,
    predicted BIGINT NOT NULL,
    confidence DOUBLE PRECISION NOT NULL,
    margin DOUBLE PRECISION NOT NULL,
    distance DOUBLE PRECISION NOT NULL,
    attacked BOOLEAN NOT NULL,
    psnr DOUBLE PRECISION,
    ssim DOUBLE PRECISION,
    PRIMARY KEY (experiment, contender, sample),
    FOREIGN KEY (experiment, chunk) REFERENCES chunks (experiment, first)
);

CREATE TABLE alarms (
    number BIGINT NOT NULL PRIMARY KEY,
    words TEXT NOT NULL UNIQUE
);
