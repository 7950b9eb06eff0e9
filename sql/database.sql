-- The database. First of the three files; run it with an account that may create databases:
--   mysql -u root -p -e "source sql/database.sql"
-- Safe to run again: an existing database stays as it is.

CREATE DATABASE IF NOT EXISTS crypto_db
  CHARACTER SET utf8mb4
  COLLATE utf8mb4_unicode_ci;
