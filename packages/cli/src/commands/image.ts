import type { Command } from 'commander'
import { addVerbs, imageVerbs } from '../verbs.ts'

export function define(command: Command): void {
  addVerbs(command.usage('<command> ...').helpCommand(false), imageVerbs, new WeakMap())
}
