//! `syncd-agent php-invalidate` and `syncd-agent check-php`: PHP is told of changed code, and asked for its
//! settings. See docs/php.md.
//!
//! PHP-FPM is asked over FastCGI ([`fastcgi`]) through a script of ours that runs inside it ([`fpm`]),
//! because OPcache answers only processes of its own master. [`invalidate`] has it forget code, [`check`]
//! judges its settings.

pub mod check;
mod code;
mod fastcgi;
mod fpm;
pub mod invalidate;
mod settings;
