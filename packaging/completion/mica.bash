# bash completion of mica(1)

_mica() {
	local cur prev words cword
	_init_completion || return
	local command='' i
	for ((i = 1; i < cword; i++)); do
		case ${words[i]} in
		--config) ((i++)) ;;
		-*) ;;
		*)
			command=${words[i]}
			break
			;;
		esac
	done
	case $prev in
	--config)
		_filedir toml
		return
		;;
	--pod | --seconds) return ;;
	--output)
		_filedir
		return
		;;
	esac
	local choices
	case $command in
	'') choices='--config --help info check events debug config stop version' ;;
	check) choices='--content --help' ;;
	events) choices='--follow --running --pod --json --help' ;;
	debug) choices='profile cpu heap goroutine trace --seconds --output --help' ;;
	config) choices='default dump check' ;;
	stop) choices='--all --keeper --help' ;;
	*) choices='--help' ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$cur")
}
complete -F _mica mica
