/** The command line as commander sees it. */
import { Command, CommanderError } from 'commander'
import { EXIT, tell } from './failure.ts'
import { endOnBrokenPipe, printFailure } from './output/print.ts'
import { addVerbs, type Verb, verbs } from './verbs.ts'
import { VERSION } from './version.ts'

/** Runs one command line; gives the exit code. Nothing is thrown. */
export async function runProgram(words: readonly string[]): Promise<number> {
  endOnBrokenPipe()
  // A verb's options are known once it is loaded, which its own `--help` does.
  const argv = words[0] === 'help' && words.length > 1 ? [...words.slice(1), '--help'] : words
  const known = new WeakMap<Command, Verb>()
  const program = new Command('dormouse')
    .description('OCI images as virtual machines')
    .usage('[options] <command> ...')
    .version(VERSION, '-V, --version', 'Print the version of the CLI')
    .option('-H, --host <address>', 'where the daemon is: unix:///path or http://host:port (DORMOUSE_HOST)')
    .helpOption('-h, --help', 'Show help')
    .helpCommand('help [command]', 'Show help for a command')
    .enablePositionalOptions()
    .showSuggestionAfterError()
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error:/, 'Error:')) })
    .exitOverride()
  program.addHelpText('after', '\nA command’s own help: dormouse <command> --help')
  addVerbs(program, verbs, known)
  const verb = verbs.find(({ name, alias }) => name === verbIn(argv) || alias === verbIn(argv))
  try {
    await program.parseAsync(argv, { from: 'user' })
    return typeof process.exitCode === 'number' ? process.exitCode : EXIT.ok
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0 || error.code === 'commander.help') return error.exitCode === 0 ? EXIT.ok : EXIT.usage
      return verb?.ownCodes ? EXIT.ownFailure : EXIT.usage
    }
    const told = tell(error)
    printFailure(told, { json: asksForJson(argv) })
    return verb?.ownCodes ? EXIT.ownFailure : told.exitCode
  }
}

/** The verb of a command line: its first word that is no option, nor the value of one. */
function verbIn(argv: readonly string[]): string | undefined {
  for (let index = 0; index < argv.length; index++) {
    const word = argv[index] ?? ''
    if (word === '-H' || word === '--host') index++
    else if (!word.startsWith('-')) return word
  }
  return undefined
}

/** Options after `--` belong to a command in the guest. */
const asksForJson = (argv: readonly string[]): boolean => {
  const end = argv.indexOf('--')
  return (end < 0 ? argv : argv.slice(0, end)).includes('--json')
}
