-- The two accounts, each with the rights it needs and no more. Last of the three files: the table must be there.
--
-- It does not run as it is, and nobody has to edit it: each <...> below stands for a password in quotes, which
-- sql/create_database.py makes and puts in. Safe to run again: an existing account keeps its password.
--
-- '%' lets them in from any machine that reaches the server.

-- The pipeline: the account for MYSQL_USER and MYSQL_PASSWORD in .env. It deletes what a newer snapshot of the same time
-- does not have, what RETENTION_DAYS says, and what --delete-snapshot names.
CREATE USER IF NOT EXISTS 'crypto_etl'@'%' IDENTIFIED BY <password for crypto_etl>;
GRANT SELECT, INSERT, UPDATE, DELETE ON crypto_db.crypto_prices TO 'crypto_etl'@'%';

-- The dashboard: it can read, nothing else.
CREATE USER IF NOT EXISTS 'crypto_reader'@'%' IDENTIFIED BY <password for crypto_reader>;
GRANT SELECT ON crypto_db.crypto_prices TO 'crypto_reader'@'%';
