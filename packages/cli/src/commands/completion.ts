import type { Command } from 'commander'
import { print } from '../output/print.ts'
import { parseChoice } from '../parse/values.ts'
import { verbGroups, verbs } from '../verbs.ts'

const SHELLS = ['bash', 'zsh', 'fish'] as const

export function define(command: Command): void {
  command
    .argument('<shell>', 'bash, zsh or fish')
    .addHelpText(
      'after',
      '\n  bash: source <(dormouse completion bash)\n  zsh:  source <(dormouse completion zsh)\n  fish: dormouse completion fish | source',
    )
    .action((shell: string) => print(SCRIPTS[parseChoice(shell, SHELLS, 'shell')]()))
}

const WITH_INSTANCE = 'inspect start stop restart standby restore fork rm wait update stats logs exec cp stat schedule auto-standby'
const WITH_IMAGE = 'run'
const names = (list: readonly { name: string }[]): string => list.map(({ name }) => name).join(' ')

const bash = (): string => `_dormouse() {
  local word=\${COMP_WORDS[COMP_CWORD]} verb=\${COMP_WORDS[1]}
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "${names(verbs)}" -- "$word"))
${Object.entries(verbGroups)
  .map(
    ([group, list]) => `  elif [ "$verb" = ${group} ] && [ "$COMP_CWORD" -eq 2 ]; then
    COMPREPLY=($(compgen -W "${names(list)}" -- "$word"))`,
  )
  .join('\n')}
  else
    case " ${WITH_INSTANCE} " in *" $verb "*) COMPREPLY=($(compgen -W "$(dormouse ps -a --names 2>/dev/null)" -- "$word")) ;; esac
    case " ${WITH_IMAGE} image " in *" $verb "*) COMPREPLY=($(compgen -W "$(dormouse image ls -q 2>/dev/null)" -- "$word")) ;; esac
  fi
}
complete -o default -F _dormouse dormouse`

const zsh = (): string => `autoload -Uz bashcompinit && bashcompinit
${bash()}`

const fish = (): string =>
  [
    'complete -c dormouse -n __fish_use_subcommand -f',
    ...verbs.map(({ name, summary }) => `complete -c dormouse -n __fish_use_subcommand -a ${name} -d '${summary.replaceAll("'", "\\'")}'`),
    ...Object.entries(verbGroups).flatMap(([group, list]) =>
      list.map(
        ({ name, summary }) =>
          `complete -c dormouse -n '__fish_seen_subcommand_from ${group}' -f -a ${name} -d '${summary.replaceAll("'", "\\'")}'`,
      ),
    ),
    `complete -c dormouse -n '__fish_seen_subcommand_from ${WITH_INSTANCE}' -a '(dormouse ps -a --names 2>/dev/null)'`,
    `complete -c dormouse -n '__fish_seen_subcommand_from ${WITH_IMAGE}' -f -a '(dormouse image ls -q 2>/dev/null)'`,
  ].join('\n')

const SCRIPTS = { bash, zsh, fish }
