export function follow(){} 
export function readSlowly(){}
