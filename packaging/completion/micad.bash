# bash completion of micad(8)

_micad() {
	local cur prev words cword
	_init_completion || return
	if [[ $prev == --config ]]; then
		_filedir toml
		return
	fi
	mapfile -t COMPREPLY < <(compgen -W '--config --version --help' -- "$cur")
}
complete -F _micad micad
