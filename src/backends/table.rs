//! The back ends of one kind, by name, and who uses them.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::{Code, Error, Result};
use crate::object::{Kind, Refers, did_you_mean};

/// The back ends of one kind.
pub struct Table<T: ?Sized> {
    kind: Kind,
    /// In the order in which they were made. No back end is called with it.
    rows: Mutex<Vec<Row<T>>>,
}

struct Row<T: ?Sized> {
    name: Arc<str>,
    of_type: &'static str,
    back: Arc<T>,
    /// Whether it may have several users.
    shared: bool,
    users: Vec<Arc<str>>,
}

/// One back end, as it is listed.
pub struct Listed<T: ?Sized> {
    /// Its name.
    pub name: Arc<str>,
    /// The name of its type.
    pub of_type: &'static str,
    /// The back end.
    pub back: Arc<T>,
    /// Whether it may have several users.
    pub shared: bool,
    /// Who uses it.
    pub users: Vec<Arc<str>>,
}

impl<T: ?Sized> Table<T> {
    /// A table of no back end of this kind.
    pub fn new(kind: Kind) -> Arc<Table<T>> {
        Arc::new(Table { kind, rows: Mutex::new(Vec::new()) })
    }

    /// Adds a back end. `shared`: whether it may have several users.
    ///
    /// # Errors
    /// [`Code::DuplicateId`].
    pub fn add(&self, name: Arc<str>, of_type: &'static str, back: Arc<T>, shared: bool) -> Result<()> {
        let mut rows = self.rows.lock();
        if rows.iter().any(|row| row.name == name) {
            return Err(twice(self.kind, &name));
        }
        rows.push(Row { name, of_type, back, shared, users: Vec::new() });
        Ok(())
    }

    /// The back end called `name`, for `user`, who has it until the claim is dropped.
    ///
    /// # Errors
    /// [`Code::UnknownBackend`], [`Code::BackendInUse`].
    pub fn claim(self: &Arc<Self>, name: &str, user: &str) -> Result<Claim<T>> {
        let refers = Refers::to(self.kind);
        let mut rows = self.rows.lock();
        let Some(at) = rows.iter().position(|row| &*row.name == name) else {
            return Err(refers.absent(name, &did_you_mean(name, rows.iter().map(|row| &*row.name))));
        };
        let row = &mut rows[at];
        if let Some(first) = row.users.first().filter(|_| !row.shared) {
            return Err(refers.taken(name, first));
        }
        let user: Arc<str> = user.into();
        row.users.push(user.clone());
        Ok(Claim { table: Arc::downgrade(self), name: row.name.clone(), user, back: row.back.clone() })
    }

    /// Takes a back end out that nobody uses.
    ///
    /// # Errors
    /// [`Code::UnknownBackend`], [`Code::BackendInUse`].
    pub fn remove(&self, name: &str) -> Result<Arc<T>> {
        let refers = Refers::to(self.kind);
        let mut rows = self.rows.lock();
        let Some(at) = rows.iter().position(|row| &*row.name == name) else { return Err(refers.absent(name, "")) };
        match rows[at].users.first() {
            Some(user) => Err(refers.taken(name, user)),
            None => Ok(rows.remove(at).back),
        }
    }

    /// Every back end, in the order in which they were made.
    pub fn list(&self) -> Vec<Listed<T>> {
        let listed = |row: &Row<T>| Listed {
            name: row.name.clone(),
            of_type: row.of_type,
            back: row.back.clone(),
            shared: row.shared,
            users: row.users.clone(),
        };
        self.rows.lock().iter().map(listed).collect()
    }
}

/// The error for a name that two of a kind have.
pub fn twice(kind: Kind, name: &str) -> Error {
    let key = match kind {
        Kind::Node => "node name",
        Kind::Chardev | Kind::Netdev | Kind::Object => "id",
    };
    Error::new(Code::DuplicateId, format!("the {key} `{name}` is used twice"))
}

/// A back end with its user. Dropping it leaves the back end to the next.
pub struct Claim<T: ?Sized> {
    /// Weak: a back end in the table may itself claim others of it.
    table: Weak<Table<T>>,
    name: Arc<str>,
    user: Arc<str>,
    back: Arc<T>,
}

impl<T: ?Sized> Claim<T> {
    /// The back end's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The back end, for a thread of the user's, which must not outlive the claim.
    pub fn back(&self) -> &Arc<T> {
        &self.back
    }
}

impl<T: ?Sized> Deref for Claim<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.back
    }
}

impl<T: ?Sized> Drop for Claim<T> {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut rows = table.rows.lock();
        let Some(row) = rows.iter_mut().find(|row| row.name == self.name) else { return };
        if let Some(at) = row.users.iter().position(|user| *user == self.user) {
            row.users.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_at_a_time() {
        let table: Arc<Table<str>> = Table::new(Kind::Chardev);
        table.add("c0".into(), "null", "one".into(), false).unwrap();
        let claim = table.claim("c0", "serial0").unwrap();
        assert_eq!((&*claim, &**claim.name()), ("one", "c0"));
        assert_eq!(table.claim("c0", "serial1").map(drop).unwrap_err().code(), Code::BackendInUse);
        assert_eq!(table.remove("c0").unwrap_err().code(), Code::BackendInUse);
        drop(claim);
        drop(table.claim("c0", "serial1").unwrap());
        assert_eq!(&*table.remove("c0").unwrap(), "one");
        assert_eq!(table.claim("c0", "serial1").map(drop).unwrap_err().code(), Code::UnknownBackend);
    }

    #[test]
    fn what_is_shared_has_several_users() {
        let table: Arc<Table<str>> = Table::new(Kind::Chardev);
        table.add("mux".into(), "stdio", "one".into(), true).unwrap();
        let first = table.claim("mux", "a").unwrap();
        let second = table.claim("mux", "b").unwrap();
        drop(first);
        assert_eq!(table.list()[0].users, ["b".into()]);
        drop(second);
        assert!(table.list()[0].users.is_empty());
    }

    #[test]
    fn a_name_is_used_once() {
        let table: Arc<Table<str>> = Table::new(Kind::Node);
        table.add("d0".into(), "file", "one".into(), false).unwrap();
        let error = table.add("d0".into(), "file", "two".into(), false).unwrap_err();
        assert_eq!((error.code(), error.cause()), (Code::DuplicateId, "the node name `d0` is used twice"));
        let error = table.claim("do", "disk").map(drop).unwrap_err();
        assert_eq!(error.cause(), "there is no block node `do`, did you mean `d0`?");
    }
}
