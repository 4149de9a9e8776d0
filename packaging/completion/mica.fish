# fish completion of mica(1)

set -l commands info check events debug config stop version

complete -c mica -f
complete -c mica -l config -r -F -d 'configuration file of the daemon'
complete -c mica -l help -d 'show commands and options'

complete -c mica -n "not __fish_seen_subcommand_from $commands" -a info -d 'show version, directories and sockets of the running daemon'
complete -c mica -n "not __fish_seen_subcommand_from $commands" -a check -d 'check the whole node for damage and leftovers'
complete -c mica -n "not __fish_seen_subcommand_from $commands" -a events -d 'show running and recent operations with their stages'
complete -c mica -n "not __fish_seen_subcommand_from $commands" -a debug -d 'write a profile of the daemon to a file'
complete -c mica -n "not __fish_seen_subcommand_from $commands" -a config -d 'print a configuration file, print the settings in force, or check the files'
complete -c mica -n "not __fish_seen_subcommand_from $commands" -a stop -d 'end the daemon'
complete -c mica -n "not __fish_seen_subcommand_from $commands" -a version -d 'print the version'

complete -c mica -n '__fish_seen_subcommand_from check; and not __fish_seen_subcommand_from config' -l content -d 'read all layers and compare them with their digests'
complete -c mica -n '__fish_seen_subcommand_from events' -l follow -d 'continue with new operations as they end'
complete -c mica -n '__fish_seen_subcommand_from events' -l running -d 'only running operations'
complete -c mica -n '__fish_seen_subcommand_from events' -l pod -x -d 'only what is about this pod'
complete -c mica -n '__fish_seen_subcommand_from events' -l json -d 'one JSON object a line'
complete -c mica -n '__fish_seen_subcommand_from debug; and not __fish_seen_subcommand_from profile' -a profile -d 'write a profile of the daemon to a file'
complete -c mica -n '__fish_seen_subcommand_from profile; and not __fish_seen_subcommand_from cpu heap goroutine trace' -a 'cpu heap goroutine trace' -d 'kind of profile'
complete -c mica -n '__fish_seen_subcommand_from profile' -l seconds -x -d 'how long to collect a profile of kind cpu or trace'
complete -c mica -n '__fish_seen_subcommand_from profile' -l output -r -F -d 'file for the profile, - for standard output'
complete -c mica -n '__fish_seen_subcommand_from config; and not __fish_seen_subcommand_from default dump check' -a default -d 'a commented file with every key and its default'
complete -c mica -n '__fish_seen_subcommand_from config; and not __fish_seen_subcommand_from default dump check' -a dump -d 'what is in force'
complete -c mica -n '__fish_seen_subcommand_from config; and not __fish_seen_subcommand_from default dump check' -a check -d 'what is wrong with the files'
complete -c mica -n '__fish_seen_subcommand_from stop' -l all -d 'also all pods, the keeper and the embedded network'
complete -c mica -n '__fish_seen_subcommand_from stop' -l keeper -d 'also the keeper and the embedded network, unless there are pods'
