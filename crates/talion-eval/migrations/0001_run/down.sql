DROP TABLE alarms;
DROP TABLE outcomes;
DROP TABLE chunks;
DROP TABLE contenders;
DROP TABLE experiments;
DROP TABLE run;
