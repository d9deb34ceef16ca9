//! URLs of shards: what is accepted, and how they are shown.

/// The schemes, as written before `://`.
const SCHEMES: [(&str, Scheme); 5] = [
    ("s3", Scheme::S3),
    ("gs", Scheme::Gs),
    ("az", Scheme::Az),
    ("https", Scheme::Https),
    ("http", Scheme::Http),
];

/// Kinds of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    S3,
    Gs,
    Az,
    Https,
    Http,
}

/// Whether a path or pattern is a URL of a store: `s3://`, `gs://`, `az://`, `https://`, `http://`.
#[must_use]
pub fn is_remote(text: &str) -> bool {
    split(text).is_some()
}

fn split(text: &str) -> Option<(Scheme, &str)> {
    let (name, rest) = text.split_once("://")?;
    let (_, scheme) = SCHEMES.iter().find(|(known, _)| *known == name)?;
    Some((*scheme, rest))
}

/// A text that may hold URLs, without what is secret in them: user names with passwords and
/// signatures in queries.
pub(crate) fn redacted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "\"'<>)".contains(c));
        let (url, tail) = after.split_at(end.unwrap_or(after.len()));
        let host_end = url.find(['/', '?', '#']).unwrap_or(url.len());
        let (mut host, path) = url.split_at(host_end);
        if let Some(user_end) = host.rfind('@') {
            shown.push_str("***");
            host = &host[user_end..];
        }
        shown.push_str(host);
        match path.split_once('?') {
            // The choice of fields after a pattern is ours and no secret, a wildcard neither.
            Some((path, query)) if query.contains(['=', '&', '%']) && !is_choice(query) => {
                shown.push_str(path);
                shown.push_str("?***");
            }
            _ => shown.push_str(path),
        }
        rest = tail;
    }
    shown.push_str(rest);
    shown
}

/// Whether a query is a choice of fields such as `image=png&label=cls`.
fn is_choice(query: &str) -> bool {
    query.split('&').all(|item| {
        let name = item.split('=').next().unwrap_or_default();
        ["image", "label", "text", "metadata"].contains(&name)
    })
}

/// One object, or a pattern of objects, in a store.
#[cfg_attr(not(feature = "object-store"), allow(dead_code))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) scheme: Scheme,
    /// Bucket, container, or host with port.
    pub(crate) authority: String,
    /// Everything after the first `/`.
    pub(crate) key: String,
}

#[cfg_attr(not(feature = "object-store"), allow(dead_code))]
impl Location {
    /// Takes a URL apart. The reason given for a refusal never repeats the URL.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = split(text).ok_or("expected s3://, gs://, az:// or https://")?;
        let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
        let web = matches!(scheme, Scheme::Https | Scheme::Http);
        if authority.contains('@') {
            return Err(
                "user names and passwords in URLs are not accepted; credentials come from \
                        the environment"
                    .into(),
            );
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let allowed = |c: char| plain(c) || web && ":[]".contains(c);
        if authority.is_empty() || !authority.chars().all(allowed) {
            let what = if web { "a host" } else { "a bucket" };
            return Err(format!("expected {what} after `://`"));
        }
        if web && key.contains(['?', '#']) {
            return Err("queries in URLs (`?...`, as in presigned URLs) are not supported; give \
                        the plain URL, or s3://, gs:// or az:// with credentials in the environment"
                .into());
        }
        if web && key.contains(['*', '[']) {
            return Err("a web server cannot be listed: name its shards with braces, such as \
                        {000000..000127}"
                .into());
        }
        if key.is_empty() {
            return Err("expected a key after the bucket or host".into());
        }
        if key.split('/').any(|part| part == "." || part == "..") || key.contains('\0') {
            return Err("keys hold no `.` or `..` components".into());
        }
        Ok(Self { scheme, authority: authority.to_owned(), key: key.to_owned() })
    }

    /// The URL of another key in the same store.
    pub(crate) fn with_key(&self, key: &str) -> String {
        let name = SCHEMES.iter().find(|(_, scheme)| *scheme == self.scheme);
        format!("{}://{}/{key}", name.map_or("", |(name, _)| name), self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_are_taken_apart_and_put_together() {
        for url in ["s3://bucket/a/b.tar", "https://host:8443/x/y.tar", "az://c/k", "gs://b/*.tar"]
        {
            let location = Location::parse(url).unwrap();
            assert_eq!(location.with_key(&location.key), url);
        }
        for bad in [
            "s3://",
            "s3://b",
            "s3://b/",
            "s3:///k",
            "https://u:p@h/k",
            "https://h/k?sig=1",
            "https://h/*.tar",
            "ftp://h/k",
            "s3://b/../k",
            "s3://b c/k",
            "http://h/a#b",
        ] {
            assert!(Location::parse(bad).is_err(), "{bad}");
        }
        assert!(!is_remote("/s3/a.tar") && !is_remote("C://a") && is_remote("gs://b/k"));
    }

    #[test]
    fn secrets_in_urls_are_not_shown() {
        let text = "GET https://me:pw@host/a.tar?X-Amz-Signature=abc failed, see http://h/b";
        assert_eq!(redacted(text), "GET https://***@host/a.tar?*** failed, see http://h/b");
        for kept in ["s3://b/shard-00?.tar", "wds:s3://b/a.tar?image=png&label=cls", "no url"] {
            assert_eq!(redacted(kept), kept);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_a_location(text in "(s3|https|gs|x)?(://)?\\PC{0,40}") {
            let _ = Location::parse(&text);
            let _ = redacted(&text);
        }
    }
}
