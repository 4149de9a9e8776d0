# fish completion of micad(8)

complete -c micad -f
complete -c micad -l config -r -F -d 'configuration file'
complete -c micad -l version -d 'print the version and exit'
complete -c micad -l help -d 'show the options'
