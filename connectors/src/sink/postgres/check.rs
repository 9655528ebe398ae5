//! What `validate --connect` looks at: the place, the table, the user's rights. Nothing is changed.

use arrow::datatypes::SchemaRef;
use tidemill_config::Guarantee;

use super::{
    Postgres,
    failure::{Doing, Failure},
    marks::NAMES,
    session::Session,
    table::quoted,
};
use crate::sink::SinkError;

const LOOKING: &str = "looking at the tables in";

impl Postgres {
    /// Whether the sink could work as it is configured.
    pub(super) async fn look_around(&self, session: &mut Session, schema: Option<&SchemaRef>) -> Result<(), Failure> {
        let (place, server) = (session.place.clone(), self.server.shown());
        let client = &session.connection.client;
        let sql =
            "SELECT pg_is_in_recovery(), current_user::text, has_database_privilege(current_database(), 'TEMPORARY'),
            current_database()::text, current_setting('default_transaction_read_only') = 'on'";
        let row = client.query_one(sql, &[]).await.doing(LOOKING)?;
        let (standby, user, temporary, database): (bool, String, bool, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let user = quoted(&user);
        let fatal = |why: String| Err(SinkError::Fatal(format!("{server}: {why}")).into());
        if standby {
            return fatal("it is a standby, which cannot be written to: name the primary in `url`".into());
        }
        if row.get(4) {
            return fatal(format!(
                "transactions of {user} in database {0} are read-only: ALTER DATABASE {0} RESET default_transaction_read_only, \
                 or ALTER ROLE {user} SET default_transaction_read_only = off",
                quoted(&database)
            ));
        }
        let sql = "SELECT has_schema_privilege(oid, 'USAGE'), has_schema_privilege(oid, 'CREATE') FROM pg_namespace
            WHERE nspname = $1";
        let Some(row) = client.query_opt(sql, &[&place]).await.doing(LOOKING)? else {
            let name = quoted(&place);
            return fatal(format!("there is no schema {name}: CREATE SCHEMA {name} AUTHORIZATION {user}"));
        };
        let (uses, creates): (bool, bool) = (row.get(0), row.get(1));
        if !uses {
            return fatal(format!("no right to use the schema: GRANT USAGE ON SCHEMA {} TO {user}", quoted(&place)));
        }
        let creating = |what: &str| {
            let name = quoted(&place);
            fatal(format!(
                "no right to make {what}: GRANT CREATE ON SCHEMA {name} TO {user}, or make them as another user"
            ))
        };
        let own = if self.guarantee == Guarantee::ExactlyOnce { &NAMES[..] } else { &[] };
        let mut found = 0;
        for name in own {
            found += usize::from(self.rights(session, name, &["SELECT", "INSERT", "UPDATE", "DELETE"], &user).await?);
        }
        if found < own.len() && !creates {
            return creating("Tidemill's own tables, which keep its marks (`guarantee: at_least_once` needs none)");
        }
        let upserts = !self.table.key.is_empty();
        let mut needed = vec!["INSERT"];
        if upserts {
            needed.extend(["SELECT", "UPDATE"]);
        }
        needed.extend(self.table.delete_when.as_ref().map(|_| "DELETE"));
        let there = self.rights(session, &self.table.name, &needed, &user).await?;
        if !there && !creates {
            return creating(&format!("the table {}, which is not there", quoted(&self.table.name)));
        }
        if upserts && !temporary {
            let database = quoted(&database);
            return fatal(format!(
                "an upsert needs a temporary table: GRANT TEMPORARY ON DATABASE {database} TO {user}"
            ));
        }
        if let Some(schema) = schema {
            self.table.look(&session.connection, &place, schema, true).await?;
        }
        Ok(())
    }

    /// Whether a table is there; an error where the user lacks one of these rights on it.
    async fn rights(&self, session: &Session, table: &str, needed: &[&str], user: &str) -> Result<bool, Failure> {
        let sql = "SELECT r.name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                CROSS JOIN unnest($3::text[]) WITH ORDINALITY AS r (name, at)
            WHERE n.nspname = $1 AND c.relname = $2 AND NOT (has_table_privilege(c.oid, r.name)
                OR r.name <> 'DELETE' AND has_any_column_privilege(c.oid, CASE r.name WHEN 'DELETE' THEN 'SELECT' ELSE r.name END))
            ORDER BY r.at";
        let lacking = session.connection.client.query(sql, &[&session.place, &table, &needed]).await.doing(LOOKING)?;
        if !lacking.is_empty() {
            let lacking: Vec<&str> = lacking.iter().map(|row| row.get(0)).collect();
            let (table, lacking) = (format!("{}.{}", quoted(&session.place), quoted(table)), lacking.join(", "));
            let server = self.server.shown();
            return Err(SinkError::Fatal(format!(
                "{server}: no right to {lacking} on {table}: GRANT {lacking} ON {table} TO {user}"
            ))
            .into());
        }
        let sql = "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = $2";
        let found = session.connection.client.query_opt(sql, &[&session.place, &table]).await.doing(LOOKING)?;
        Ok(found.is_some())
    }
}
