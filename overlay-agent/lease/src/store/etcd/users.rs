//! Who may do what in etcd: users, each with a role of the same name.
//!
//! Nobody has a password: who a client is says its certificate's common name (etcd's documentation of
//! `--client-cert-auth`, «Using TLS Common Name»).

use etcd_client::{
    Error, Permission, PermissionType, RoleRevokePermissionOptions, Txn, TxnOp, UserAddOptions,
};

use super::{
    EtcdStore,
    connect::{is_not_permitted, says},
    end_of,
};
use crate::store::StoreError;

/// The user that may do everything, and its role.
const ROOT: &str = "root";

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Read.
    Read,
    /// Read, write and delete.
    Write,
}

/// What somebody may do with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The key; with a slash at its end, all that begin with it.
    pub key: String,
    /// What may be done with it.
    pub right: Right,
}

impl Access {
    /// The right to read.
    pub fn read(key: impl Into<String>) -> Self {
        Self { key: key.into(), right: Right::Read }
    }

    /// The right to write.
    pub fn write(key: impl Into<String>) -> Self {
        Self { key: key.into(), right: Right::Write }
    }

    fn end(&self) -> Option<String> {
        self.key.ends_with('/').then(|| end_of(&self.key))
    }

    fn permission(&self) -> Permission {
        let kind = match self.right {
            Right::Read => PermissionType::Read,
            Right::Write => PermissionType::Readwrite,
        };
        let permission = Permission::new(kind, self.key.as_str());
        match self.end() {
            Some(end) => permission.with_range_end(end),
            None => permission,
        }
    }
}

/// What is as it was to be, already.
fn is_so_already(error: &Error) -> bool {
    ["already exists", "already granted", "not found", "not granted"]
        .iter()
        .any(|text| says(error, text))
}

fn unless_so(outcome: Result<(), Error>) -> Result<(), Error> {
    outcome.or_else(|error| if is_so_already(&error) { Ok(()) } else { Err(error) })
}

impl EtcdStore {
    /// Has etcd look at who its clients are, from now on. The certificate that this is asked with has to be root's.
    pub async fn tell_users_apart(&self) -> Result<(), StoreError> {
        self.add_user(ROOT, &[]).await?;
        self.request("switch on", "etcd's authentication", |mut connection| async move {
            connection.client.auth_enable().await.map(drop)
        })
        .await
    }

    /// Makes a user who may do this, or gives these rights to the one there is.
    pub async fn add_user(&self, name: &str, rights: &[Access]) -> Result<(), StoreError> {
        self.request("make etcd's user", name, |mut connection| async move {
            let client = &mut connection.client;
            unless_so(client.role_add(name).await.map(drop))?;
            for access in rights {
                client.role_grant_permission(name, access.permission()).await?;
            }
            let options = UserAddOptions::new().with_no_pwd();
            unless_so(client.user_add(name, "", Some(options)).await.map(drop))?;
            unless_so(client.user_grant_role(name, name).await.map(drop))
        })
        .await
    }

    /// Removes a user with all rights: what is open is answered no more, but for watches, which etcd asks once.
    pub async fn remove_user(&self, name: &str) -> Result<(), StoreError> {
        self.request("remove etcd's user", name, |mut connection| async move {
            unless_so(connection.client.user_delete(name).await.map(drop))?;
            unless_so(connection.client.role_delete(name).await.map(drop))
        })
        .await
    }

    /// Gives a user one more right.
    pub async fn allow(&self, name: &str, access: &Access) -> Result<(), StoreError> {
        self.request("give more rights to etcd's user", name, |mut connection| async move {
            let permission = access.permission();
            connection.client.role_grant_permission(name, permission).await.map(drop)
        })
        .await
    }

    /// Takes a right from a user, who need not be there.
    pub async fn forbid(&self, name: &str, access: &Access) -> Result<(), StoreError> {
        self.request("take rights from etcd's user", name, |mut connection| async move {
            let options =
                access.end().map(|end| RoleRevokePermissionOptions::new().with_range_end(end));
            let key = access.key.as_str();
            let revoked = connection.client.role_revoke_permission(name, key, options).await;
            unless_so(revoked.map(drop))
        })
        .await
    }

    /// Whether etcd really lets us do no more than our role says. Of a transaction in a transaction releases before March 2026 did
    /// not ask who may (GHSA-rfx7-8w68-q57q). To be asked as somebody who may not read `secret`.
    pub async fn is_confined(&self, secret: &str) -> Result<bool, StoreError> {
        self.request("read in a nested transaction", secret, |mut connection| async move {
            let inside = Txn::new().and_then([TxnOp::get(secret, None)]);
            match connection.client.txn(Txn::new().and_then([TxnOp::txn(inside)])).await {
                Ok(_) => Ok(false),
                Err(error) if is_not_permitted(&error) => Ok(true),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// All users.
    pub async fn users(&self) -> Result<Vec<String>, StoreError> {
        self.request("list", "etcd's users", |mut connection| async move {
            Ok(connection.client.user_list().await?.users().to_vec())
        })
        .await
    }
}
