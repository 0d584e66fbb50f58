import type { Command } from 'commander'
import { addVerbs, tokenVerbs } from '../verbs.ts'

export function define(command: Command): void {
  addVerbs(command.usage('<command> ...').helpCommand(false), tokenVerbs, new WeakMap())
}
