//! Hand-written statements. Diesel prepares an `update` or a `sql_query` again on every call, because it cannot know
//! that the text is constant. These have a constant text and a static id, so each connection prepares them once.

/// A statement, and the type of its rows.
pub(super) trait Statement {
    /// Its name in traces.
    const NAME: &'static str;

    /// The row type. Columns are matched by name, unless there is only one.
    type Row: Send + 'static;
}

/// Declares a statement: its row type, and its text with a bound field between the pieces.
///
/// The row type is a struct with `QueryableByName`; `i64 as sql::BigInt` for a single column and its type; or `()` for
/// a statement that returns no rows.
macro_rules! statement {
    (
        $(#[$doc:meta])*
        $name:ident -> $row:ty as $columns:ty =
        $($first:literal)+ $([$field:ident: $rust:ty as $sql:ty] $($text:literal)+)*
    ) => {
        $(#[$doc])*
        struct $name {
            $($field: $rust,)*
        }

        impl diesel::query_builder::QueryFragment<diesel::pg::Pg> for $name {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
            ) -> diesel::result::QueryResult<()> {
                out.push_sql(concat!($($first),+));
                $(
                    out.push_bind_param::<$sql, $rust>(&self.$field)?;
                    out.push_sql(concat!($($text),+));
                )*
                Ok(())
            }
        }

        impl diesel::query_builder::QueryId for $name {
            type QueryId = Self;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::query_builder::Query for $name {
            type SqlType = $columns;
        }

        impl crate::store::statement::Statement for $name {
            const NAME: &'static str = stringify!($name);

            type Row = $row;
        }
    };
    ($(#[$doc:meta])* $name:ident -> $row:ty = $($text:tt)*) => {
        statement! { $(#[$doc])* $name -> $row as diesel::sql_types::Untyped = $($text)* }
    };
}

pub(super) use statement;
