<?php
/**
 * What WordPress needs on several nodes behind a balancer. Goes to the top of the content tree, and is required by
 * wp-config.php before wp-settings.php: docs/guide/wordpress.md.
 *
 * @package syncd
 */

// One host runs the jobs, by cron. Otherwise visitors start each job on every node.
defined( 'DISABLE_WP_CRON' ) || define( 'DISABLE_WP_CRON', true );

// The balancer ends TLS, and sets this header whatever visitors send.
if ( 'https' === ( $_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '' ) ) {
	$_SERVER['HTTPS'] = 'on';
}
