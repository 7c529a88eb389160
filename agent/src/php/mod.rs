//! `syncd-agent php-invalidate` makes PHP forget changed code, and `syncd-agent check-php` checks the
//! settings of PHP. See docs/php.md.
//!
//! Requests reach PHP-FPM over FastCGI ([`fastcgi`]). A script of syncd's answers them inside PHP-FPM
//! ([`fpm`]), because OPcache answers only processes of its own master.

pub mod check;
mod code;
mod fastcgi;
mod fpm;
pub mod invalidate;
mod settings;
