-- The table, in the database that is selected when this runs, as sql/create_database.py does.
-- Safe to run again: an existing table stays as it is.
--
-- Figures are DOUBLE: it gives every figure CoinGecko sends back unchanged, from a price of 1e-18 to a supply of 4e17;
-- DECIMAL(20,8) turns real prices into 0. NULL: CoinGecko sent none; it is never stored as 0.
-- The primary key begins with the time, so a snapshot lies together on disk and the newest one is read at once.

CREATE TABLE IF NOT EXISTS crypto_prices (
  timestamp                        DATETIME     NOT NULL COMMENT 'UTC, when the snapshot was taken',
  coin_id                          VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL
                                                COMMENT 'CoinGecko id: the only key of a coin, symbols repeat',
  symbol                           VARCHAR(255) NOT NULL,
  name                             VARCHAR(255) NOT NULL,
  market_cap_rank                  INT          NULL,
  current_price                    DOUBLE       NULL COMMENT 'USD',
  market_cap                       DOUBLE       NULL COMMENT 'USD; CoinGecko sends 0 for not known',
  fully_diluted_valuation          DOUBLE       NULL COMMENT 'USD',
  total_volume                     DOUBLE       NULL COMMENT 'USD, last 24 hours',
  high_24h                         DOUBLE       NULL COMMENT 'USD',
  low_24h                          DOUBLE       NULL COMMENT 'USD',
  price_change_24h                 DOUBLE       NULL COMMENT 'USD',
  price_change_percentage_1h       DOUBLE       NULL COMMENT 'per cent: 1.5 is 1.5 %',
  price_change_percentage_24h      DOUBLE       NULL COMMENT 'per cent',
  price_change_percentage_7d       DOUBLE       NULL COMMENT 'per cent',
  market_cap_change_24h            DOUBLE       NULL COMMENT 'USD',
  market_cap_change_percentage_24h DOUBLE       NULL COMMENT 'per cent',
  circulating_supply               DOUBLE       NULL COMMENT 'coins',
  total_supply                     DOUBLE       NULL COMMENT 'coins',
  max_supply                       DOUBLE       NULL COMMENT 'coins',
  ath                              DOUBLE       NULL COMMENT 'USD, all-time high',
  atl                              DOUBLE       NULL COMMENT 'USD, all-time low',
  last_updated                     DATETIME(3)  NULL COMMENT 'UTC, when CoinGecko last updated this coin',
  market_cap_tier                  VARCHAR(20)  NULL COMMENT 'NULL until segment_and_load.py has run',
  PRIMARY KEY (timestamp, coin_id),
  KEY coin_id_timestamp (coin_id, timestamp),
  KEY market_cap_tier (market_cap_tier)
) ENGINE = InnoDB
  CHARACTER SET utf8mb4
  COLLATE utf8mb4_unicode_ci;
