<?php
// Does in WordPress what a person does in wp-admin: site.php TREE COMMAND [ARGUMENT]. Runs as the web server's user.
[ , $tree, $command ] = $argv;
$_SERVER['HTTP_HOST']              = 'www.example.org';
$_SERVER['HTTP_X_FORWARDED_PROTO'] = 'https';
$_SERVER['REQUEST_METHOD']         = 'GET';
define( 'WP_ADMIN', 'node' !== $command );
require "$tree/wp-load.php";

function admin() {
	require_once ABSPATH . 'wp-admin/includes/admin.php';
	require_once ABSPATH . 'wp-admin/includes/class-wp-upgrader.php';
	wp_set_current_user( 1 );
	WP_Filesystem();
}

function check( $result ) {
	if ( is_wp_error( $result ) ) {
		fwrite( STDERR, $result->get_error_message() . "\n" );
		exit( 1 );
	}
	return $result;
}

switch ( $command ) {
	case 'password':
		// Users > Profile > Application Passwords.
		echo check( WP_Application_Passwords::create_new_application_password( 1, array( 'name' => 'test' ) ) )[0];
		break;
	case 'permalinks':
		// Settings > Permalinks > Post name: writes .htaccess.
		admin();
		add_filter( 'got_rewrite', '__return_true' );
		$GLOBALS['wp_rewrite']->set_permalink_structure( '/%postname%/' );
		flush_rewrite_rules( true );
		break;
	case 'plugin':
		// Plugins > Add New > Upload Plugin, with a plugin that marks each page.
		admin();
		$archive = new PharData( sys_get_temp_dir() . '/marker.zip' );
		$archive->addFromString( 'marker/style.css', 'body { margin: 0 }' );
		$archive->addFromString(
			'marker/marker.php',
			"<?php\n/* Plugin Name: Marker */\nadd_action( 'wp_footer', function () { echo '<!-- marked -->'; } );\n"
		);
		$upgrader = new Plugin_Upgrader( new Automatic_Upgrader_Skin() );
		check( $upgrader->install( $archive->getPath() ) );
		check( activate_plugin( 'marker/marker.php' ) );
		break;
	case 'upgrade':
		// Dashboard > Updates > Update Now, with what Core_Upgrader has unpacked.
		admin();
		$GLOBALS['wp_filesystem']->copy( "{$argv[3]}/wordpress/wp-admin/includes/update-core.php",
			ABSPATH . 'wp-admin/includes/update-core.php', true );
		require_once ABSPATH . 'wp-admin/includes/update-core.php';
		add_filter( 'update_feedback', function ( $told ) { fwrite( STDERR, "$told\n" ); } );
		echo check( update_core( $argv[3], ABSPATH ) );
		break;
	case 'node':
		echo json_encode( array(
			'name'      => wp_unique_filename( sys_get_temp_dir(), 'image.jpg' ),
			'may_update' => wp_is_file_mod_allowed( 'capability_update_core' ),
		) );
		break;
	default:
		fwrite( STDERR, "no command $command\n" );
		exit( 2 );
}
