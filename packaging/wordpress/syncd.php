<?php
/**
 * Plugin Name: syncd
 * Description: WordPress on several nodes: names of uploads are unique per node, and replicas are not updated.
 * License: see the licence of syncd
 *
 * Goes to wp-content/mu-plugins/syncd.php of the content tree, and so to every node: docs/guide/wordpress.md.
 *
 * The name of a node is SYNCD_NODE, a constant or a variable of PHP's environment; by default it is the host name up to
 * its first dot. No two nodes may have the same one.
 *
 * @package syncd
 */

defined( 'ABSPATH' ) || exit;

/**
 * Returns the name of this node: small letters, digits and single hyphens.
 */
function syncd_node() {
	$node = defined( 'SYNCD_NODE' ) ? SYNCD_NODE : getenv( 'SYNCD_NODE' );
	if ( ! is_string( $node ) || '' === $node ) {
		$node = strtok( (string) gethostname(), '.' );
	}
	return trim( preg_replace( '/[^a-z0-9]+/', '-', strtolower( (string) $node ) ), '-' );
}

/**
 * Adds the node to the name of a new file: image.jpg becomes image--web1.jpg, and the next one image-2--web1.jpg.
 *
 * Two nodes that get image.jpg in the same second make two names, so neither database row shows the other picture.
 * WordPress joins repeated hyphens in the names that it is given, so the first pair of them always divides name and
 * node. Thumbnails, scaled and edited pictures derive their names from this one.
 */
function syncd_unique_filename( $filename, $ext, $dir ) {
	$node = syncd_node();
	if ( '' === $node ) {
		return $filename;
	}
	$ext   = pathinfo( $filename, PATHINFO_EXTENSION );
	$ext   = '' === $ext ? '' : ".$ext";
	$name  = preg_replace( '/-{2,}/', '-', substr( $filename, 0, strlen( $filename ) - strlen( $ext ) ) );
	$taken = array();
	foreach ( is_dir( $dir ) ? scandir( $dir ) : array() as $there ) {
		// A picture that is converted has the same name with another extension.
		$taken[ strtolower( pathinfo( $there, PATHINFO_FILENAME ) ) ] = true;
	}
	$own    = "$name--$node";
	$number = 2;
	while ( isset( $taken[ strtolower( $own ) ] ) || isset( $taken[ strtolower( "$own-scaled" ) ] ) ) {
		$own = "$name-$number--$node";
		++$number;
	}
	return $own . $ext;
}
add_filter( 'wp_unique_filename', 'syncd_unique_filename', 100, 3 );

/**
 * Whether this WordPress runs from the replica of an agent, ROOT/slots/K or ROOT/live.
 */
function syncd_is_replica() {
	$root = preg_replace( '#/(?:slots/[0-9]+|live)/*$#', '', ABSPATH, 1, $found );
	return $found && is_dir( "$root/generations" ) && is_dir( "$root/slots" );
}

/**
 * Refuses updates, installations and the editor of files in a replica, as DISALLOW_FILE_MODS does: what changes there
 * is lost with the next generation.
 */
function syncd_file_mod_allowed( $allowed ) {
	return $allowed && ! syncd_is_replica();
}
add_filter( 'file_mod_allowed', 'syncd_file_mod_allowed', 100 );
