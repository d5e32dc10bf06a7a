//! Logging in: name and password are tried at the registry before they are kept.

use reqwest::StatusCode;

use crate::client::Ask;
use crate::credentials::Credential;
use crate::error::{Error, Result};
use crate::hosts;
use crate::registries::Registries;

impl Registries {
    /// Tries name and password at a registry, and keeps them if they are right; returns where.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; the registry's; the file's.
    pub fn login(&self, registry: &str, user: &str, password: &str) -> Result<String> {
        let credential = Credential::Password { user: user.to_owned(), password: password.to_owned() };
        let settings = crate::Settings { credential: Some(credential), ..self.settings.clone() };
        let mut client = hosts::registry(registry, &settings, &self.mirrors)?;
        let what = format!("login at {registry}");
        self.runtime.block_on(async {
            client.probe().await?;
            let response = client.ask(&Ask::get("", &[], &what)).await?;
            match response.status() {
                StatusCode::OK => Ok(()),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    Err(Error::Unauthorized(format!("{what}: the name or the password is wrong")))
                }
                StatusCode::NOT_FOUND => Err(Error::NotFound(format!("{what}: it is no registry"))),
                _ => Err(client.complaint(response, &what).await),
            }
        })?;
        self.settings.auth_files.keep(registry, user, password)
    }
}
