package queue

var Declare = declare
