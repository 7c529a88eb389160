<?php
// Answers syncd-agent inside PHP-FPM: `syncd-agent php-invalidate` and `syncd-agent check-php`. See docs/php.md.
// Goes to /usr/local/lib/syncd/opcache.php: below no document root, readable for the pool's user.
//
// Nobody else is answered. A web server always passes on who asked (REMOTE_ADDR), and no visitor can set
// SYNCD_TASK: what comes from visitors begins with HTTP_.
$task = getenv('SYNCD_TASK');
if (PHP_SAPI !== 'fpm-fcgi' || $task === false || getenv('REMOTE_ADDR') !== false || getenv('HTTP_HOST') !== false) {
    http_response_code(403);
    exit("refused: only syncd-agent may ask\n");
}

// The cached scripts by their full path; none where the cache is off.
function scripts(): array
{
    return opcache_get_status(true)['scripts'] ?? [];
}

// Forgets a script. `false`: it was not cached.
function forget(string $path): bool
{
    $was_cached = opcache_is_script_cached($path);
    // The result says whether the file is there. What counts is whether it is cached still.
    opcache_invalidate($path, true);
    if (opcache_is_script_cached($path)) {
        throw new Exception("OPcache keeps $path");
    }
    return $was_cached;
}

// Whether the path, or a path above it up to the tree, is in the set.
function is_at_or_below(string $path, array $set, string $tree): bool
{
    for (; strlen($path) > strlen($tree); $path = dirname($path)) {
        if (isset($set[$path])) {
            return true;
        }
    }
    return false;
}

// Forgets what the request says: every script, every script of the tree, or what changed, which is in the body. There
// each path is relative to the tree and ends with NUL. Its first byte says what is there now:
//   -  no directory: what was there before is forgotten, and all that was below it
//   d  a directory: a script that was there before is forgotten, and nothing that is in it
//   a  a file that may be known by a link that was there before
function invalidate(string $scope, string $tree): int
{
    $cached = scripts();
    if ($scope !== 'paths') {
        $ours = fn (string $path) => $scope === 'all' || str_starts_with($path, "$tree/");
        return count(array_filter(array_filter(array_keys($cached), $ours), 'forget'));
    }
    $forgotten = 0;
    $gone = [];
    foreach (explode("\0", substr(file_get_contents('php://input'), 0, -1)) as $line) {
        [$kind, $path] = [$line[0], "$tree/" . substr($line, 1)];
        if ($kind === '-') {
            $gone[$path] = true;
        }
        if ($kind !== 'a' || !isset($cached[$path])) {
            $forgotten += (int) forget($path);
        }
    }
    $below = fn (string $path) => str_starts_with($path, "$tree/") && is_at_or_below($path, $gone, $tree);
    return $forgotten + count(array_filter(array_filter(array_keys($cached), $below), 'forget'));
}

// The settings that `check-php` judges, and the cached code of the slot that has most.
function settings(string $slots): array
{
    $status = opcache_get_status(true) ?: [];
    $code = [];
    foreach ($status['scripts'] ?? [] as $path => $script) {
        if (str_starts_with($path, "$slots/")) {
            $slot = strtok(substr($path, strlen($slots) + 1), '/');
            $code[$slot] = ($code[$slot] ?? 0) + $script['memory_consumption'];
        }
    }
    $statistics = $status['opcache_statistics'] ?? [];
    return [
        'version' => PHP_VERSION,
        'ini' => ini_get_all('zend opcache', false) + ['realpath_cache_ttl' => ini_get('realpath_cache_ttl')],
        'code_bytes' => max([0, ...array_values($code)]),
        'max_keys' => $statistics['max_cached_keys'] ?? 0,
        'restarts' => ($statistics['oom_restarts'] ?? 0) + ($statistics['hash_restarts'] ?? 0),
        'preloaded' => $status['preload_statistics']['scripts'] ?? [],
    ];
}

header('Content-Type: application/json');
try {
    // The list of a large cache is long.
    ini_set('memory_limit', '-1');
    if (!extension_loaded('zend opcache')) {
        throw new Exception('OPcache is not loaded');
    }
    $only = (string) ini_get('opcache.restrict_api');
    if (!str_starts_with(__FILE__, $only)) {
        throw new Exception("opcache.restrict_api is $only: allow " . __FILE__);
    }
    if ($task === 'invalidate' && ini_get('opcache.file_cache_only')) {
        throw new Exception('opcache.file_cache_only is set: no process can have the others forget code');
    }
    $tree = (string) getenv('SYNCD_TREE');
    echo json_encode(match ($task) {
        'invalidate' => ['forgotten' => invalidate((string) getenv('SYNCD_SCOPE'), $tree)],
        'settings' => settings($tree),
    }, JSON_INVALID_UTF8_SUBSTITUTE);
} catch (Throwable $error) {
    echo json_encode(['error' => $error->getMessage()], JSON_INVALID_UTF8_SUBSTITUTE);
}
