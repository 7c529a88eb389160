//! Settings of stores that speak S3, from the variables `AWS_*`. Checked before the first request, because
//! the library would try addresses of Amazon's for whatever is missing.

use object_store::aws::AmazonS3Builder;

/// A variable is missing, or does not fit another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("no region and no endpoint: set AWS_REGION for Amazon S3, or AWS_ENDPOINT_URL for another store")]
    Place,
    #[error(
        "AWS_ENDPOINT_URL is not a URL: it begins with https://, or http:// within a network that you trust"
    )]
    Endpoint,
    #[error(
        "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true to read \
         a public bucket, or AWS_METADATA_ENDPOINT for the role of the machine"
    )]
    Credentials,
    #[error("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is missing")]
    SecretMissing,
    #[error("AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is missing")]
    KeyMissing,
    #[error("s3:// needs the name of a bucket: s3://BUCKET/PREFIX")]
    Bucket,
}

/// Variables of which one gives credentials without a secret of its own.
const OTHER_CREDENTIALS: [&str; 5] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
    "AWS_SKIP_SIGNATURE",
];

/// Whether requests may go unencrypted: the endpoint says so.
pub(super) fn check(bucket: &str, variable: impl Fn(&str) -> Option<String>) -> Result<bool, SettingsError> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if bucket.is_empty() {
        return Err(SettingsError::Bucket);
    }
    let endpoint = set("AWS_ENDPOINT_URL").or_else(|| set("AWS_ENDPOINT"));
    let region = set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION"));
    let is_plain = match &endpoint {
        Some(url) if url.starts_with("http://") => true,
        Some(url) if url.starts_with("https://") => false,
        Some(_) => return Err(SettingsError::Endpoint),
        None if region.is_none() => return Err(SettingsError::Place),
        None => false,
    };
    match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
        (Some(_), Some(_)) => Ok(is_plain),
        (Some(_), None) => Err(SettingsError::SecretMissing),
        (None, Some(_)) => Err(SettingsError::KeyMissing),
        (None, None) if OTHER_CREDENTIALS.iter().any(|name| set(name).is_some()) => Ok(is_plain),
        (None, None) => Err(SettingsError::Credentials),
    }
}

/// A builder with the variables of this process. Empty ones count as missing.
pub(super) fn builder(bucket: &str) -> Result<(AmazonS3Builder, bool), SettingsError> {
    let is_plain = check(bucket, |name| std::env::var(name).ok())?;
    Ok((AmazonS3Builder::from_env().with_bucket_name(bucket), is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(set: &[(&str, &str)]) -> Result<bool, SettingsError> {
        let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned());
        check("bucket", find)
    }

    #[test]
    fn a_missing_variable_is_named() {
        let keys = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
        let with = |more: &[(&'static str, &'static str)]| [&keys[..], more].concat();
        assert_eq!(checked(&keys), Err(SettingsError::Place));
        assert_eq!(checked(&with(&[("AWS_REGION", "")])), Err(SettingsError::Place));
        assert_eq!(checked(&with(&[("AWS_REGION", "eu-west-1")])), Ok(false));
        assert_eq!(checked(&with(&[("AWS_ENDPOINT_URL", "http://h:1")])), Ok(true));
        assert_eq!(checked(&with(&[("AWS_ENDPOINT", "https://h")])), Ok(false));
        assert_eq!(checked(&with(&[("AWS_ENDPOINT_URL", "h:1")])), Err(SettingsError::Endpoint));
        let place = ("AWS_REGION", "eu-west-1");
        assert_eq!(checked(&[place]), Err(SettingsError::Credentials));
        assert_eq!(checked(&[place, keys[0]]), Err(SettingsError::SecretMissing));
        assert_eq!(checked(&[place, keys[1]]), Err(SettingsError::KeyMissing));
        assert_eq!(checked(&[place, ("AWS_SKIP_SIGNATURE", "true")]), Ok(false));
        assert_eq!(check("", |_| None), Err(SettingsError::Bucket));
    }
}
