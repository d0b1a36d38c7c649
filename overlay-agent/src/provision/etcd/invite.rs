//! The lines for other hosts.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use overlay_lease::{
    store::etcd::{EtcdConfig, EtcdStore},
    wire::identity::TokenId,
};

use super::super::{
    Init, MEMBER_TOKEN_FILE, TOKEN_FILE,
    report::Report,
    token::{self, Token},
};
use crate::{
    authority::{
        self, TokenRecord, certificates,
        pki::{Authority, Credential},
    },
    exit::{Exit, WithExit as _},
    files::{self, Readers},
};

/// The lines for other hosts: those that were made before while they are good, else new ones. One is for those that only
/// ask etcd, one, with the authority's key, for those that take part in it. The store is asked as root.
pub(super) async fn invite(
    etcd: &EtcdConfig,
    store: &EtcdStore,
    endpoints: Vec<String>,
    local: bool,
    wanted: &Init,
    report: &mut Report,
) -> Result<Token> {
    let ca = etcd.ca_file.as_deref().map(files::read).transpose()?.flatten();
    let own = if local { certificates::read_authority()? } else { None };
    let read = |path| -> Result<Option<Token>> {
        Ok(files::read(Path::new(path))?.and_then(|line| line.parse().ok()))
    };
    let is_good = |old: &Token, authority: Option<&String>| {
        old.check(SystemTime::now()).is_ok()
            && old.endpoints == endpoints
            && old.tls.as_ref().map(|tls| &tls.ca) == ca.as_ref()
            && old.authority.as_ref() == authority
    };
    let key = own.as_ref().map(|own| &own.key);
    let wants_members = local && read(MEMBER_TOKEN_FILE)?.is_none_or(|old| !is_good(&old, key));
    if let Some(old) = read(TOKEN_FILE)?.filter(|old| !wants_members && is_good(old, None))
        && opens(store, &old, wanted).await?
    {
        Report::kept("token", &format!("in {TOKEN_FILE}"))?;
        return Ok(old);
    }
    let end = SystemTime::now() + wanted.token_lifetime;
    let ends = end.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let client = match (&etcd.identity, own.clone()) {
        (None, _) => None,
        (Some(_), Some(own)) => {
            let record = TokenRecord { ends, once: wanted.token_once, used_by: None };
            Some(open(store, own, &record, wanted.token_lifetime).await?)
        }
        (Some(identity), None) => {
            let own = certificates::read_identity(identity)?;
            Some(token::Client { certificate: own.certificate, key: own.key, temporary: false })
        }
    };
    let new = Token {
        endpoints,
        prefix: etcd.prefix.to_string(),
        tls: ca.map(|ca| token::Tls { ca, client }),
        expires: ends,
        authority: None,
    };
    let mut written = format!("in {TOKEN_FILE}");
    files::write(Path::new(TOKEN_FILE), &format!("{}\n", new.encode()), Readers::Root)?;
    if local {
        let members = Token { authority: own.map(|own| own.key), ..new.clone() };
        let line = format!("{}\n", members.encode());
        files::write(Path::new(MEMBER_TOKEN_FILE), &line, Readers::Root)?;
        written = format!("{written}, and {MEMBER_TOKEN_FILE} for hosts with a share in etcd");
    }
    report.done("token", &written)?;
    Ok(new)
}

/// Makes a certificate that opens no more of etcd than it takes to ask for one of a host's own.
async fn open(
    store: &EtcdStore,
    own: Credential,
    record: &TokenRecord,
    lifetime: Duration,
) -> Result<token::Client> {
    let id = TokenId::new();
    authority::open_token(store, &id, record).await.exit(Exit::Unavailable)?;
    let made = Authority::load(own)?.client(&id.user(), lifetime)?;
    Ok(token::Client { certificate: made.certificate, key: made.key, temporary: true })
}

/// Whether a line still opens what it did: its token may be used up, or all were forgotten.
async fn opens(store: &EtcdStore, old: &Token, wanted: &Init) -> Result<bool> {
    let client = old.tls.as_ref().and_then(|tls| tls.client.as_ref());
    let Some(client) = client.filter(|client| client.temporary) else { return Ok(true) };
    let Some(id) = crate::certificate::common_name(&client.certificate)?
        .and_then(|user| TokenId::of_user(&user))
    else {
        return Ok(false);
    };
    let record = authority::token(store, &id).await.exit(Exit::Unavailable)?;
    Ok(record.is_some_and(|(_, record)| {
        record.once == wanted.token_once && !(record.once && record.used_by.is_some())
    }))
}
