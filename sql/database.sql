-- The database. First of the three files that sql/create_database.py runs, by an account that may create databases.
-- Safe to run again: an existing database stays as it is.

CREATE DATABASE IF NOT EXISTS crypto_db
  CHARACTER SET utf8mb4
  COLLATE utf8mb4_unicode_ci;
