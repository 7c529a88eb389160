//! Examples and remarks below the options of each command.

pub(super) const EXIT_CODES: &str = "Exit codes: 0 success; 1 failure; 2 wrong usage; 3 sealed, but not live on every node that was \
                          waited for; 141 standard output was closed.\n\
                          SYNCD_LOG=debug logs more. See also: syncd-agent.";

pub(super) const SERVE: &str = "\
Examples:
  syncd-origin serve --tree /srv/site
  syncd-origin serve --tree /srv/site --trigger manual --admin-group deploy
  syncd-origin serve --tree /srv/site.git --trigger git --git-ref main

TIME is a number with a unit, as in 500ms, 30s or 5m. SIZE and RATE are bytes, and bytes per second; \
K, M and G are powers of 1,024.

Files named by .syncdignore files in the tree are not published. SIGTERM stops cleanly. SIGHUP does \
not reload options.";

pub(super) const TOKEN: &str = "\
Examples:
  syncd-origin token
  syncd-origin token --ttl 1d --uses 10
  syncd-origin token list

TIME is a number with a unit, as in 90s, 12h or 30d.";
pub(super) const KEY: &str = "\
Examples:
  syncd-origin key show
  syncd-origin key rotate --signing > document
  syncd-origin key sign --root-key /media/usb/root.key";
pub(super) const KEY_SHOW: &str = "\
Examples:
  syncd-origin key show
  syncd-origin key show --json | jq .";
pub(super) const KEY_ROTATE: &str = "\
Examples:
  syncd-origin key rotate > document
  syncd-origin key rotate --authority --retire > document";
pub(super) const KEY_SIGN: &str = "\
Examples:
  syncd-origin key sign --root-key /media/usb/root.key
  syncd-origin key sign --root-key root.key document > signed";
pub(super) const KEY_TAKE: &str = "\
Examples:
  syncd-origin key take signed
  ssh safe.example.org cat signed | syncd-origin key take -";
pub(super) const TOKEN_LIST: &str = "\
Examples:
  syncd-origin token list";
pub(super) const TOKEN_REVOKE: &str = "\
Examples:
  syncd-origin token revoke 0a1b2c3d";
pub(super) const COMMIT: &str = "\
Examples:
  syncd-origin commit -m 'release 7' --wait
  syncd-origin commit --wait=5m --require-all --json
  syncd-origin commit --rollout together --wait

TIME is a number with a unit, as in 500ms, 30s or 5m.

A commit ends the hold that a rollback leaves.

Exit codes: 0 success; 1 failure, nothing was sealed; 2 wrong usage; 3 sealed, but not live on every node that \
was waited for. With --dry-run: 0 a commit would be taken, 1 it would be refused.";
pub(super) const WAIT: &str = "\
Examples:
  number=$(syncd-origin commit) && syncd-origin wait $number
  syncd-origin wait 42 --timeout 10m --summary \"$GITHUB_STEP_SUMMARY\"

TIME is a number with a unit, as in 500ms, 30s or 5m.

Exit codes: 0 the generation or a later one is live on every node that was waited for; 1 failure; 3 it is not.";

pub(super) const STATUS: &str = "\
Examples:
  syncd-origin status --watch
  syncd-origin status --check > /dev/null || echo 'look at the origin'";
pub(super) const HISTORY: &str = "\
Examples:
  syncd-origin history
  syncd-origin history --json | tail -1

An asterisk (*) marks the published generation. Changes are new (+), changed (~) and removed (-) files and directories.";

pub(super) const EVENTS: &str = "\
Examples:
  syncd-origin events --follow
  syncd-origin events --json | jq 'select(.event == \"failed\")'

Events are lines in DATA/events and DATA/events.old, the oldest are dropped. What happens while no origin serves is \
not seen.";
pub(super) const AUDIT: &str = "\
Examples:
  syncd-origin audit | tail

Lists requests by user and process, as DATA/audit and DATA/audit.old have them. The oldest are dropped. A request that \
failed is listed too.";
pub(super) const DIFF: &str = "\
Examples:
  syncd-origin diff
  syncd-origin diff 41 43 --stat
  syncd-origin diff --pending";
pub(super) const ROLLOUT: &str = "\
Examples:
  syncd-origin rollout status
  syncd-origin rollout pause
  syncd-origin rollout abort";
pub(super) const ROLLOUT_STATUS: &str = "\
Examples:
  syncd-origin rollout status
  syncd-origin rollout status --json | jq .phase";
pub(super) const ROLLOUT_PAUSE: &str = "\
Examples:
  syncd-origin rollout pause

Nodes that have the new generation keep it.";
pub(super) const ROLLOUT_RESUME: &str = "\
Examples:
  syncd-origin rollout resume";
pub(super) const ROLLOUT_ADVANCE: &str = "\
Examples:
  syncd-origin rollout advance";
pub(super) const ROLLOUT_ABORT: &str = "\
Examples:
  syncd-origin rollout abort";
pub(super) const ROLLBACK: &str = "\
Examples:
  syncd-origin rollback --wait
  syncd-origin rollback 41 --wait --yes

TIME is a number with a unit, as in 500ms, 30s or 5m.

After a rollback nothing is published automatically until the next commit. Exit codes are those of \
commit.";

pub(super) const CONFIG: &str = "\
Examples:
  syncd-origin config check
  syncd-origin config show";
pub(super) const CONFIG_CHECK: &str = "\
Examples:
  syncd-origin config check
  syncd-origin config check --config new.toml -- --tree /srv/site";
pub(super) const CONFIG_SHOW: &str = "\
Examples:
  syncd-origin config show
  syncd-origin config show --config /etc/syncd/origin.toml -- --settle 2s";
pub(super) const PAGE: &str = "\
Examples:
  syncd-origin page

A login lasts for 12 hours, or until the origin is restarted.";
pub(super) const COMPLETIONS: &str = "\
Examples:
  syncd-origin completions bash > /usr/share/bash-completion/completions/syncd-origin";

pub(super) const PUBLISH: &str = "\
Examples:
  syncd-origin publish status
  syncd-origin publish check
  syncd-origin publish gc --grace 2h";

pub(super) const PUBLISH_STATUS: &str = "\
Examples:
  syncd-origin publish status --json | jq .released";
pub(super) const PUBLISH_CHECK: &str = "\
Examples:
  syncd-origin publish check

Exit codes: 0 all intact; 1 something is damaged or missing, and is named.";
pub(super) const PUBLISH_GC: &str = "\
Examples:
  syncd-origin publish gc
  syncd-origin publish gc --grace 2h --keep 20

TIME is a number with a unit, as in 90s, 30m or 2h.";

pub(super) const PROMOTE: &str = "\
Examples:
  syncd-origin promote

Stop the origin that served before, or cut it off. Nothing is published until `syncd-origin commit`.";

pub(super) const RESTORE: &str = "\
Examples:
  syncd-origin restore --from file:///mnt/shared/site

The data directory must hold the keys: `format` and `keys` from a backup.";

pub(super) const BACKUP: &str = "\
Examples:
  syncd-origin backup /mnt/backup/syncd-origin

To restore, run `syncd-origin serve` with the copy as --data.";
